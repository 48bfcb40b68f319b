"""A network drawn on a map and a stretch of time on it, one PNG each, with the arrays they are drawn from.

Nothing here knows the domain: whoever saves the arrays says what the edges carry and in which unit. Both
records are NumPy `.npz` archives without pickled objects; texts lie in one JSON string under `texts`.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from dynamic_graph_fed_rl.evaluation.plots import BASELINE_COLOURS, NEUTRAL, POLICY_COLOUR, figure
from dynamic_graph_fed_rl.evaluation.statistics import POLICY

SHARED = "shared"
"""Whose series it is when no controller decides it, such as demand."""

_REGION_COLOURS = ("#56B4E9", "#009E73", "#CC79A7", "#332288", "#E69F00", "#8C8C8C", "#0072B2", "#882255")
_LOADING_COLOURS = ((0, "#C9D0D7"), (50, "#A3ADB8"), (80, "#E0A030"), (100, "#CF3A0C"), (120, "#4A000C"))
_FULL_SCALE_PERCENT = 120.0
_PIXELS_ACROSS = 420


@dataclass(frozen=True)
class NetworkMap:
    """What `report/map.npz` holds: a network of N nodes and E edges at one moment.

    Every field is a key of the archive, except the texts, which share the key `texts`.
    """

    positions: Float[np.ndarray, "N 2"]
    """Where the nodes are drawn; see `layout`."""
    edges: Int[np.ndarray, "E 2"]
    """Node indices of both ends."""
    edge_loading_percent: Float[np.ndarray, " E"]
    """Flow over rating; NaN where an edge has no rating."""
    edge_rating: Float[np.ndarray, " E"]
    """Line width; 0 for none."""
    edge_in_service: Bool[np.ndarray, " E"]
    region: Int[np.ndarray, " N"]
    """Index of the region that controls the node."""
    node_demand: Float[np.ndarray, " N"]
    """Node size."""
    node_is_source: Bool[np.ndarray, " N"]
    """Drawn as a square: a generator, an origin, a factory."""
    title: str = "Network"
    loading_label: str = "loading (%)"
    demand_label: str = "demand"
    demand_unit: str = ""
    source_label: str = "source"
    placed: str = "Drawn by connection, not by geography."
    """How, in a sentence."""
    region_names: tuple[str, ...] = ()

    def save(self, path: Path) -> None:
        texts = {name: value for name, value in vars(self).items() if isinstance(value, str | tuple)}
        arrays = {name: value for name, value in vars(self).items() if name not in texts}
        _save(path, arrays, texts)

    @classmethod
    def load(cls, path: Path) -> "NetworkMap":
        arrays, texts = _load(path)
        return cls(**arrays, **{**texts, "region_names": tuple(texts["region_names"])})


@dataclass(frozen=True)
class Panel:
    """One panel of a timeline: the quantities drawn in it (keys of `series` after the slash) and its axis."""

    title: str
    unit: str
    quantities: tuple[str, ...]
    limits: tuple[float, ...] = ()
    """Horizontal lines: the bounds of what is allowed."""


@dataclass(frozen=True)
class Timeline:
    """What `report/day.npz` holds: a stretch of T moments under one or a few controllers.

    `hours` and every entry of `series` are keys of the archive; title and panels share the key `texts`.
    """

    hours: Float[np.ndarray, " T"]
    series: Mapping[str, Float[np.ndarray, " T"] | Float[np.ndarray, "T 3"]]
    """`"<controller>/<quantity>"`, or `"shared/<quantity>"` for what no controller decides; in the panel's
    unit. `[T, 3]` is a band: lowest, mean, highest."""
    panels: tuple[Panel, ...]
    title: str = "One day"
    events: Mapping[str, float] = field(default_factory=dict)
    """Text to the hour at which it happened, such as an outage."""

    def save(self, path: Path) -> None:
        panels = [vars(panel) for panel in self.panels]
        texts = {"title": self.title, "panels": panels, "events": dict(self.events)}
        _save(path, {"hours": self.hours, **self.series}, texts)

    @classmethod
    def load(cls, path: Path) -> "Timeline":
        series, texts = _load(path)
        hours = series.pop("hours")
        panels = tuple(
            Panel(panel["title"], panel["unit"], tuple(panel["quantities"]), tuple(panel["limits"]))
            for panel in texts["panels"]
        )
        return cls(hours, series, panels, texts["title"], texts["events"])


def layout(number_of_nodes: int, edges: Int[np.ndarray, "E 2"]) -> Float[np.ndarray, "N 2"]:
    """Positions that keep drawn distance near the number of edges between two nodes, in [-1, 1].

    Kamada and Kawai (1989), started from classical scaling of the hop distances instead of a circle: the
    same network always gives the same picture, and one with fewer crossings. Parts that are not connected are
    set a little further apart than the widest part is across.
    """
    import networkx

    ends = np.asarray(edges, dtype=int).reshape(-1, 2)
    if ends.size and (ends.min() < 0 or ends.max() >= number_of_nodes):
        raise ValueError(f"edge to node {ends.max()}: nodes are 0 to {number_of_nodes - 1}")
    if number_of_nodes < 3:
        return np.array([[0.0, 0.0]] if number_of_nodes == 1 else [[-1.0, 0.0], [1.0, 0.0]])[:number_of_nodes]
    graph = networkx.Graph()
    graph.add_nodes_from(range(number_of_nodes))
    graph.add_edges_from((int(a), int(b)) for a, b in ends)
    hops = np.full((number_of_nodes, number_of_nodes), np.inf)
    for node, reached in networkx.all_pairs_shortest_path_length(graph):
        hops[node, list(reached)] = list(reached.values())
    apart = hops[np.isfinite(hops)].max() + 2.0
    hops = np.where(np.isfinite(hops), hops, apart)
    start = _classical_scaling(hops)
    distances = {node: dict(enumerate(row)) for node, row in enumerate(hops.tolist())}
    placed = networkx.kamada_kawai_layout(graph, dist=distances, pos=dict(enumerate(start)))
    positions = np.array([placed[node] for node in range(number_of_nodes)])
    return _widest_axis_horizontal(positions)


def draw_network(path: Path, network: NetworkMap) -> None:
    """Edges coloured by loading (0 to 120 %) and as wide as their rating, dashed where out of service; nodes
    as large as their demand, squares where there is a source; regions as tinted areas."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.collections import LineCollection
    from matplotlib.colors import LinearSegmentedColormap, Normalize

    colours = LinearSegmentedColormap.from_list(
        "loading", [(percent / _FULL_SCALE_PERCENT, colour) for percent, colour in _LOADING_COLOURS]
    )
    scale = Normalize(0.0, _FULL_SCALE_PERCENT)
    segments = network.positions[network.edges]
    on = np.asarray(network.edge_in_service, dtype=bool)
    rated = np.isfinite(network.edge_loading_percent)
    widths = _between(network.edge_rating, 1.2, 4.5)
    across, up = np.ptp(network.positions, axis=0)
    height = float(np.clip(1.9 + 8.6 * (up / across if across else 1.0), 4.0, 11.0))
    with figure(path, height, network.title) as drawn:
        axes = drawn.add_subplot()
        _draw_regions(axes, network)
        for chosen, style, colour in (
            (on & rated, "solid", None),
            (on & ~rated, "solid", "#AAB2BA"),
            (~on, (0, (2.5, 2.0)), "#000000"),
        ):
            lines = LineCollection(list(segments[chosen]), linewidths=widths[chosen], linestyles=style, zorder=2)
            loading = network.edge_loading_percent[chosen]
            lines.set_color(colour if colour else [tuple(rgba) for rgba in colours(scale(loading))])
            axes.add_collection(lines)
        _draw_nodes(axes, network)
        bar = drawn.colorbar(
            ScalarMappable(scale, colours), ax=axes, extend="max", shrink=0.75, pad=0.01, aspect=30,
            ticks=[0, 20, 40, 60, 80, 100, 120],
        )  # fmt: skip
        bar.set_label(network.loading_label)
        bar.ax.axhline(100, color="white", linewidth=1.5)
        axes.set_aspect("equal")
        axes.margins(0.01)
        axes.set_axis_off()
        handles = _legend_handles(network)
        drawn.legend(handles=handles, loc="outside lower center", ncols=min(len(handles), 5))


def draw_timeline(path: Path, timeline: Timeline) -> None:
    """One panel under another over the same hours, the policy in blue, a band where a quantity has one."""
    owners = dict.fromkeys(name.split("/", 1)[0] for name in timeline.series)
    baselines = [name for name in owners if name not in (POLICY, SHARED)]
    colours = {POLICY: POLICY_COLOUR, **dict(zip(baselines, BASELINE_COLOURS, strict=False))}
    controllers = [POLICY] * (POLICY in owners) + baselines
    height = 1.0 + 2.05 * len(timeline.panels)
    with figure(path, height, timeline.title) as drawn:
        stacked = list(drawn.subplots(len(timeline.panels), 1, sharex=True, squeeze=False)[:, 0])
        for axes, panel in zip(stacked, timeline.panels, strict=True):
            _draw_panel(axes, timeline, panel, controllers, colours)
        stacked[-1].set_xlabel("hour of the day")
        begin, end = timeline.hours[0], timeline.hours[-1] + np.diff(timeline.hours[-2:]).sum()
        stacked[-1].set_xlim(begin, end)
        if end - begin > 12:
            stacked[-1].set_xticks(np.arange(np.ceil(begin / 3) * 3, end + 0.01, 3))
        if timeline.events:
            _draw_events(stacked, timeline)


def _draw_panel(
    axes: Any, timeline: Timeline, panel: Panel, controllers: Sequence[str], colours: Mapping[str, str]
) -> None:
    shared_styles = iter([("#000000", "-"), (NEUTRAL, "--"), ("#E69F00", "-."), ("#009E73", ":")])
    for quantity in panel.quantities:
        if f"{SHARED}/{quantity}" in timeline.series:
            colour, style = next(shared_styles)
            values = timeline.series[f"{SHARED}/{quantity}"]
            _draw_series(axes, timeline.hours, values, colour, quantity.replace("_", " "), style, 1.6)
        # The policy is drawn last, over the baselines, yet comes first in the legend.
        for controller in reversed(controllers):
            if f"{controller}/{quantity}" in timeline.series:
                several = len(panel.quantities) > 1
                label = f"{controller}: {quantity.replace('_', ' ')}" if several else controller
                width = 2.0 if controller == POLICY else 1.5
                values = timeline.series[f"{controller}/{quantity}"]
                _draw_series(axes, timeline.hours, values, colours[controller], label, "-", width)
    for limit in panel.limits:
        axes.axhline(limit, color="#8E0B0B", linewidth=1.0, linestyle="--")
    axes.set_title(panel.title, fontsize=10.5)
    axes.set_ylabel(panel.unit)
    handles, labels = axes.get_legend_handles_labels()
    own = [index for index, label in enumerate(labels) if label.split(":")[0] in controllers]
    rest = [index for index in range(len(labels)) if index not in own]
    order = [*own[::-1], *rest]
    shown = [handles[index] for index in order], [labels[index] for index in order]
    axes.legend(*shown, loc="center left", bbox_to_anchor=(1, 0.5))


def _draw_events(stacked: Sequence[Any], timeline: Timeline) -> None:
    """A line through all panels; its text, where it fits beside the one before, in the last panel."""
    last = stacked[-1]
    bottom, top = last.get_ylim()
    last.set_ylim(bottom, top + 0.2 * (top - bottom))
    span = timeline.hours[-1] - timeline.hours[0]
    free_from = timeline.hours[0]
    for text, hour in sorted(timeline.events.items(), key=lambda event: event[1]):
        for axes in stacked:
            axes.axvline(hour, color=NEUTRAL, linewidth=1, linestyle=":")
        width = 0.011 * len(text) * span
        to_the_left = hour + width > timeline.hours[-1]
        begins = hour - width if to_the_left else hour
        if begins < free_from:
            continue
        last.annotate(
            text, (hour, 0.97), xycoords=("data", "axes fraction"), xytext=(-3 if to_the_left else 3, 0),
            textcoords="offset points", va="top", ha="right" if to_the_left else "left", fontsize=8.5,
            color=NEUTRAL,
        )  # fmt: skip
        free_from = begins + width


def _draw_series(axes: Any, hours: Any, values: Any, colour: str, label: str, style: str, width: float) -> None:
    if values.ndim == 2:
        if colour == POLICY_COLOUR:
            axes.fill_between(hours, values[:, 0], values[:, 2], color=colour, alpha=0.15, linewidth=0)
        axes.plot(hours, values[:, [0, 2]], color=colour, linestyle=":", linewidth=1.2)
        values = values[:, 1]
    axes.plot(hours, values, color=colour, linestyle=style, linewidth=width, label=label)


def _draw_regions(axes: Any, network: NetworkMap) -> None:
    """Each region covers what lies near its nodes and inner edges, and nearer to them than to another's."""
    from scipy.ndimage import binary_fill_holes
    from scipy.spatial import KDTree

    low, high = network.positions.min(0), network.positions.max(0)
    margin = 0.04 * float((high - low).max())
    x, y = (np.linspace(low[i] - 2 * margin, high[i] + 2 * margin, _PIXELS_ACROSS) for i in (0, 1))
    pixels = np.stack(np.meshgrid(x, y), axis=-1).reshape(-1, 2)
    fractions = np.linspace(0.0, 1.0, 96)[:, None, None]
    from_region, to_region = network.region[network.edges].T
    distance = {}
    for region in np.unique(network.region).tolist():
        inner = network.positions[network.edges[(from_region == region) & (to_region == region)]]
        along = (inner[:, 0] * (1 - fractions) + inner[:, 1] * fractions).reshape(-1, 2)
        points = np.concatenate([network.positions[network.region == region], along])
        distance[region] = KDTree(points).query(pixels)[0].reshape(len(y), len(x))
    for region, near in distance.items():
        others = [far for other, far in distance.items() if other != region]
        rival = np.min(others, axis=0) if others else np.full_like(near, np.inf)
        inside = np.minimum(margin - near, rival - near)
        holes = binary_fill_holes(inside > 0) & (inside <= 0) & (rival > margin)
        inside[holes] = np.abs(inside[holes]) + 1e-6
        colour = _REGION_COLOURS[region % len(_REGION_COLOURS)]
        axes.contourf(x, y, inside, levels=[0.0, np.inf], colors=[colour], alpha=0.20, zorder=0)
        axes.contour(x, y, inside, levels=[0.0], colors=[colour], linewidths=1.2, zorder=1)


def _draw_nodes(axes: Any, network: NetworkMap) -> None:
    sizes = _between(network.node_demand, 9.0, 130.0)
    source = np.asarray(network.node_is_source, dtype=bool)
    for chosen, marker, face in ((~source, "o", "#30363C"), (source, "s", "#FFFFFF")):
        axes.scatter(
            *network.positions[chosen].T, s=np.maximum(sizes[chosen], 24.0 if marker == "s" else 0.0),
            marker=marker, facecolors=face, edgecolors="#30363C" if marker == "s" else "#FFFFFF",
            linewidths=1.3 if marker == "s" else 0.5, zorder=3,
        )  # fmt: skip


def _legend_handles(network: NetworkMap) -> list[Any]:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    regions = np.unique(network.region).tolist()
    handles: list[Any] = []
    if len(regions) > 1:
        for region in regions:
            known = region < len(network.region_names)
            name = network.region_names[region] if known else f"region {region + 1}"
            colour = _REGION_COLOURS[region % len(_REGION_COLOURS)]
            handles.append(Patch(facecolor=colour + "40", edgecolor=colour, label=name))
    dark = "#30363C"
    node: dict[str, Any] = {"linestyle": "none", "markeredgecolor": dark}
    most = float(np.max(network.node_demand, initial=0.0))
    if network.node_is_source.any():
        handles.append(Line2D([], [], marker="s", markerfacecolor="#FFFFFF", label=network.source_label, **node))
    if most > 0:
        for share, size in ((0.25, 6.3), (1.0, 11.4)):
            label = f"{network.demand_label} {share * most:,.3g} {network.demand_unit}".rstrip()
            handles.append(Line2D([], [], marker="o", markersize=size, markerfacecolor=dark, label=label, **node))
    if not network.edge_in_service.all():
        handles.append(Line2D([], [], color="#000000", linestyle=(0, (2.5, 2.0)), label="out of service"))
    return handles


def _between(values: Any, smallest: float, largest: float) -> Any:
    """Linear in the value, from `smallest` at 0 to `largest` at the largest finite value."""
    finite = np.where(np.isfinite(values), values, 0.0)
    top = finite.max(initial=0.0)
    share = np.clip(finite / top, 0.0, 1.0) if top > 0 else np.zeros_like(finite)
    return smallest + (largest - smallest) * share


def _classical_scaling(distances: Float[np.ndarray, "N N"]) -> Float[np.ndarray, "N 2"]:
    """Torgerson (1952): the two leading axes of the doubly centred squared distances."""
    centring = np.eye(len(distances)) - 1.0 / len(distances)
    strengths, axes = np.linalg.eigh(-0.5 * centring @ distances**2 @ centring)
    axes = axes[:, -2:] * np.sign(axes[np.abs(axes[:, -2:]).argmax(0), [-2, -1]])
    scaled = axes * np.sqrt(np.maximum(strengths[-2:], 0.0))
    # Twin leaves have equal distances, hence one point, from which the descent cannot part them.
    angle = np.arange(len(distances)) * np.pi * (3.0 - np.sqrt(5.0))
    return scaled + 0.02 * np.stack([np.cos(angle), np.sin(angle)], axis=-1)


def _widest_axis_horizontal(positions: Float[np.ndarray, "N 2"]) -> Float[np.ndarray, "N 2"]:
    centred = positions - positions.mean(0)
    axes = np.linalg.svd(centred, full_matrices=False)[2]
    turned = centred @ (axes * np.sign(axes[[0, 1], np.abs(axes).argmax(1)])[:, None]).T
    return turned / np.abs(turned).max()


def _save(path: Path, arrays: Mapping[str, Any], texts: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(path, texts=np.array(json.dumps(texts)), **dict(arrays))


def _load(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    with np.load(path, allow_pickle=False) as archive:
        arrays = {name: archive[name] for name in archive.files if name != "texts"}
        return arrays, json.loads(str(archive["texts"]))
