"""Published accuracies of related models, for scale only: greedy, AIME avg@32, other prompts, limits and parsers.

From the General-Reasoner release (github TIGER-AI-Lab/General-Reasoner); another protocol than this project's.
"""

COLUMNS = ("math500", "gpqa_diamond", "mmlu_pro", "gsm8k", "aime24", "aime25")


ACCURACIES = {
    "Qwen3-4B-Base": (0.682, 0.263, 0.516, 0.726, 0.103, 0.067),
    "Qwen3-4B, not thinking": (0.804, 0.417, 0.618, 0.920, 0.225, 0.161),
    "General-Reasoner-4B": (0.806, 0.429, 0.628, 0.922, 0.200, 0.154),
}
