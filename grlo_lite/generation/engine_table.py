"""What the planner and the engines both go by. Imports no torch."""

WORTH_FOLDING = 16  # completions at once below which a dense copy of the weights costs more than it saves


CPU_ROWS = 512  # answers outside of training that are sampled together on a CPU; on a GPU it is rollout.batch
