"""What the command line offers to train: one module a task.

The module of a task defines three frozen dataclasses of options and three functions that take them,

    Train(TrainOptions)        train(options: Train, prog: str) -> int
    Evaluate(EvaluateOptions)  evaluate(options: Evaluate, prog: str) -> int
    Predict(PredictOptions)    predict(options: Predict, prog: str) -> int

and, where the task can write something of its own, `Generate` and `generate` likewise,

where `prog` is how the program was called, for the commands that are shown to the person, and the result is
the exit code. It imports torch and the models inside those functions, so that `--help` is quick. To add a
task, write its module and add its line here.
"""

TASKS = {
    "forecast": "forecast time series, with quantiles",
    "lm": "model and write text",
    "translate": "translate texts",
    "summarize": "summarise texts",
    "classify-text": "label texts, as by sentiment or topic",
}
"""Name of the task, which is that of its module in this package (with _ for -), and what it does."""

MODELS = {"tirex": "zero-shot"}
"""Type of a model that is used without a run, and the module of what it does: `Predict` and `predict` alone."""
