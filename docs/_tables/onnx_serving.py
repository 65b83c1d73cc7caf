"""A cascade exported to ONNX against torch."""

from __future__ import annotations

from .formats import Record, Sentence, Table, percent, spread

EXPORT = "docs/howto/export_onnx.md"
ARMS = {
    "plain module": "plain module, torch",
    "cascade": "cascade, torch",
    "OnnxCascade": "`OnnxCascade`",
    "OnnxCascade int8": "`OnnxCascade`, int8",
}


def speed(record: Record) -> Table:
    """Show accuracy, saving and processor time of each arm."""
    rows = []
    for arm, words in ARMS.items():
        quality = record["quality"][arm]
        times = [record[f"batch_{size}"][arm] for size in (1, 32)]
        rows.append(
            [
                words,
                f"{percent(quality['accuracy'])} %",
                f"{percent(quality['saved'])} %",
                *(
                    cell
                    for time in times
                    for cell in (
                        f"{time['cpu_ms_an_image']['median']:.2f}",
                        spread(time["cpu_speed_up_over_plain"], 1),
                    )
                ),
            ]
        )
    headers = ["", "accuracy", "FLOPs saved"]
    for size in ("one image", "32 images"):
        headers += [f"{size}: ms an image", "times as fast as plain"]
    return Table(headers, rows)


TABLES = {"speed": speed}


def equal_answers(record: Record) -> list[str]:
    """Write the shares of equal labels and depths."""
    quality = record["quality"]["OnnxCascade"]
    shares = ("labels_equal_to_cascade", "depths_equal_to_cascade")
    return [percent(quality[name]) for name in shares]


SENTENCES = (
    Sentence(
        EXPORT,
        "{} % of the labels and {} % of the depths are those of the cascade in torch",
        equal_answers,
    ),
)
