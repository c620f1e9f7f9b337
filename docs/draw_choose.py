"""Draw the decision figures of the page "How to choose". Run: python docs/draw_choose.py."""

from pathlib import Path

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt

matplotlib.rcParams["svg.hashsalt"] = "sklm"  # the same file every time

QUESTIONS = {
    "loss": [
        ("class labels?", 'LMClassifier\n"log_loss"'),
        ("counts?", '"poisson"'),
        ("outliers in y?", '"soft_l1", "huber"\ngross: "cauchy"'),
        (None, '"squared_error"'),
    ],
    "damping": [
        ("as trainlm,\nor as a peer?", '"standard"\nor "fletcher"'),
        ("own module with\nparameters of\ndifferent units?", 'damping__scaling\n= "more"'),
        (None, '"nielsen"\n(default)'),
    ],
    "solver": [
        ("rank-deficient,\nand it matters?", '"svd"'),
        ("ill-conditioned,\np up to 1000?", '"qr"'),
        ("no room for\na p x p matrix?", '"cg"'),
        (None, '"auto"\n(default)'),
    ],
    "batch": [
        ("a full-batch step\nfast enough?", "batch_size=-1\n(default)"),
        ("rows per batch\nabove parameters?", 'batch_size="auto"\nor 200, 1000'),
        (None, "larger batches,\na smaller network,\nor Adam"),
    ],
    "regularization": [
        ("a curve?", "alpha=0, bounds"),
        ("a module of\nyour own?", 'alpha="bayes"\nor by search'),
        (None, "the default:\nby the evidence"),
    ],
}
STEP, WIDTH, HEIGHT = 2.35, 1.75, 0.8


def box(ax, x, y, text, color):
    """Draw a text in a rounded box around (x, y)."""
    style = {"boxstyle": "round,pad=0.02,rounding_size=0.12", "facecolor": color, "edgecolor": "0.45"}
    corner = (x - WIDTH / 2, y - HEIGHT / 2)
    ax.add_patch(matplotlib.patches.FancyBboxPatch(corner, WIDTH, HEIGHT, **style))
    ax.text(x, y, text, ha="center", va="center", fontsize=10)


def arrow(ax, start, end, text):
    """Draw an arrow with a word beside it."""
    ax.annotate("", end, start, arrowprops={"arrowstyle": "-|>", "color": "0.35"})
    sideways = start[1] == end[1]
    middle = ((start[0] + end[0]) / 2, (start[1] + end[1]) / 2)
    offset = (0, 4) if sideways else (4, 0)
    ax.annotate(text, middle, offset, textcoords="offset points", ha="center" if sideways else "left", fontsize=9)


def draw(questions):
    """Return a figure: questions from left to right, the answer to a yes below each, the last one to a no."""
    n = len(questions)
    figure, ax = plt.subplots(figsize=(1.1 * STEP * n - 0.4, 2.5), layout="constrained")
    for i, (question, answer) in enumerate(questions):
        x = STEP * i
        if question is None:
            box(ax, x, 0, answer, "#d8efd8")
            continue
        box(ax, x, 0, question, "#e6ecf5")
        box(ax, x, -1.5, answer, "#d8efd8")
        arrow(ax, (x, -HEIGHT / 2 - 0.02), (x, -1.5 + HEIGHT / 2 + 0.02), "yes")
        arrow(ax, (x + WIDTH / 2 + 0.02, 0), (x + STEP - WIDTH / 2 - 0.02, 0), "no")
    ax.set(xlim=(-1, STEP * (n - 1) + 1), ylim=(-2, 0.5), aspect="equal")
    ax.axis("off")
    return figure


if __name__ == "__main__":
    for name, questions in QUESTIONS.items():
        path = Path(__file__).parent / "images" / f"choose_{name}.svg"
        draw(questions).savefig(path, metadata={"Date": None})
        plt.close("all")
        path.write_text("\n".join(line.rstrip() for line in path.read_text().splitlines()) + "\n")
