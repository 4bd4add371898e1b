"""Base and tuned side by side in a browser."""

from grlo_lite.app.command import main
