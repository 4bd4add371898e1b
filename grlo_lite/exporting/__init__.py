"""What a finished run is taken away as: merged weights, GGUF, an Ollama model, the adapter, a repository of the Hub."""
