"""What came of a run, in two sentences: what was measured, and how training went."""

from grlo_lite.reporting.record import Record
from grlo_lite.wording import duration


def verdict(record: Record) -> tuple[str, str]:
    """Two sentences without markup."""
    return measured(record), trained(record)


def measured(record: Record) -> str:
    """Base against tuned, in a sentence."""
    control = "This is a control, its rewards were shuffled: " if record.key("reward.shuffle") else ""
    tasks = [task for task in record.evaluation.get("tasks", []) if isinstance(task, dict)]
    accurate = [task for task in tasks if task.get("metric") == "accuracy"]
    average = record.evaluation.get("average")
    if accurate and isinstance(average, dict):
        questions = sum(task["n"] for task in accurate)
        return (
            f"{control}{'on' if control else 'On'} {_counted(len(accurate), 'task')} with {questions:,} questions the "
            f"tuned model is right {100 * average['tuned']:.1f} % of the time and the base "
            f"{100 * average['base']:.1f} %, a difference of {_points(average)}, {_meaning(average)}."
        )
    if tasks:
        task = tasks[0]
        return (
            f"{control}{'on' if control else 'On'} {task['n']:,} questions of {task['task']} the tuned model has "
            f"{task['tuned']:.2f} and the base {task['base']:.2f} ({task['metric'].replace('_', ' ')}), a difference "
            f"of {task['difference']:+.2f} [{task['ci_low']:+.2f}, {task['ci_high']:+.2f}], {_meaning(task)}."
        )
    return (
        f"{control}{'whether' if control else 'Whether'} the model got better is not known, for nothing was measured."
    )


def trained(record: Record) -> str:
    """How far training came, what it did to the reward, and whether a guard spoke, in a sentence."""
    if not record.lines:
        return "No step of training has been recorded."
    planned, lines = record.planned_steps, record.lines
    steps = f"{record.steps:,} of {planned:,} steps" if planned else f"{record.steps:,} steps"
    took = "" if record.seconds is None else f" in {duration(record.seconds)}"
    begun = "Training made" if record.state == "finished" else "The run is unfinished: it made"
    rewards = [line["reward_mean"] for line in lines if "reward_mean" in line]
    moved = f"; the reward went from {rewards[0]:+.2f} to {rewards[-1]:+.2f}" if rewards else ""
    spoken = list(dict.fromkeys(str(row.get("guard")).replace("_", " ") for row in record.guards))
    warned = f"and the guards warned of {' and '.join(spoken)}" if spoken else "and no guard spoke"
    return f"{begun} {steps}{took}{moved}, {warned}."


def _points(row: dict) -> str:
    return f"{100 * row['difference']:+.1f} points [{100 * row['ci_low']:+.1f}, {100 * row['ci_high']:+.1f}]"


def _meaning(row: dict) -> str:
    if row["ci_low"] > 0:
        return "more than chance"
    return "a loss beyond chance" if row["ci_high"] < 0 else "no more than chance could bring"


def _counted(count: int, what: str) -> str:
    return f"{count:,} {what}" if count == 1 else f"{count:,} {what}s"
