"""Draws federation.png: who sends what to whom in a star, a tree and gossip, and asynchrony on the virtual clock.

python docs/images/draw_federation.py
"""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

AGENT, SERVER, UP, DOWN = "#2b6cb0", "#c05621", "#2f855a", "#b7791f"


def node(axes, at, text, colour, size=620):
    axes.scatter(*at, s=size, color=colour, zorder=3)
    axes.text(*at, text, color="white", ha="center", va="center", fontsize=8, zorder=4)


def arrow(axes, start, end, colour, bend=0.12):
    style = {"arrowstyle": "-|>", "color": colour, "lw": 1.3, "shrinkA": 13, "shrinkB": 13}
    axes.annotate("", end, start, arrowprops=style | {"connectionstyle": f"arc3,rad={bend}"}, zorder=2)


def both(axes, low, high):
    arrow(axes, low, high, UP)
    arrow(axes, high, low, DOWN)


def star(axes):
    centre = (0.5, 0.82)
    for i, x in enumerate(np.linspace(0.08, 0.92, 5)):
        both(axes, (x, 0.18), centre)
        node(axes, (x, 0.18), f"{i}", AGENT)
    node(axes, centre, "server", SERVER, 1500)


def tree(axes):
    root, middle = (0.5, 0.88), [(0.22, 0.52), (0.78, 0.52)]
    for i, x in enumerate(np.linspace(0.06, 0.94, 6)):
        both(axes, (x, 0.12), middle[i // 3])
        node(axes, (x, 0.12), f"{i}", AGENT)
    for at in middle:
        both(axes, at, root)
        node(axes, at, "node", SERVER, 900)
    node(axes, root, "root", SERVER, 1100)
    axes.text(0.42, 0.32, "every round", fontsize=8, color="#4a5568")
    axes.text(0.0, 0.72, "every 4th round", fontsize=8, color="#4a5568")


def gossip(axes):
    angle = np.linspace(0, 2 * np.pi, 7)[:-1] + np.pi / 2
    places = np.stack([0.5 + 0.36 * np.cos(angle), 0.5 + 0.36 * np.sin(angle)], 1)
    for i in range(6):
        arrow(axes, places[i], places[(i + 1) % 6], UP)
        arrow(axes, places[(i + 1) % 6], places[i], UP)
    for i, at in enumerate(places):
        node(axes, at, f"{i}", AGENT)


def asynchronous(axes):
    times, end = (1, 1, 2, 4), 8
    for row, step in enumerate(times):
        y = 0.86 - 0.19 * row
        for k in range(end // step):
            left, right = 0.12 + 0.105 * k * step, 0.12 + 0.105 * (k + 1) * step
            axes.plot([left + 0.008, right - 0.008], [y, y], color=AGENT, lw=7, solid_capstyle="butt")
            style = {"arrowstyle": "-|>", "color": UP, "lw": 0.9}
            axes.annotate("", (right, 0.12), (right, y - 0.03), arrowprops=style)
        axes.text(0.0, y, f"agent {row}", fontsize=8, va="center")
    axes.plot([0.12, 0.97], [0.1, 0.1], color=SERVER, lw=5)
    axes.text(0.0, 0.1, "server", fontsize=8, va="center")
    note = "ticks of the virtual clock; an update overtaken by s versions weighs (1 + s)^-0.5"
    axes.text(0.12, 0.0, note, fontsize=7.5)


def main() -> None:
    panels = {
        "server (a star)": star,
        "tree: each level on its own clock": tree,
        "gossip: neighbours of the overlay": gossip,
        "asynchronous: each in its own time": asynchronous,
    }
    figure, grid = plt.subplots(2, 2, figsize=(9.6, 6.6), layout="constrained")
    for axes, (title, draw) in zip(grid.flat, panels.items(), strict=True):
        draw(axes)
        axes.set(title=title, xlim=(-0.03, 1.03), ylim=(-0.04, 1.04))
        axes.axis("off")
    handles = [plt.Line2D([], [], color=UP, label="update (codec)"), plt.Line2D([], [], color=DOWN, label="model")]
    figure.legend(handles=handles, loc="outside lower center", ncols=2, frameon=False)
    figure.savefig(Path(__file__).with_name("federation.png"), dpi=110)


if __name__ == "__main__":
    main()
