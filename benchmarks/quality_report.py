"""The reports of the quality benchmark, from its rows: ranks, goals, tables of medians, and the ablation."""

import numpy as np
import pandas as pd
from harness import machine, markdown, versions
from quality_models import is_net, is_searched, kind
from quality_tables import ALL, HALVES, task_of

LOW_NOISE = ["energy", "yacht", "kin8nm"]
BEST = {"rmse": "min", "relative_rmse": "min", "log_loss": "min", "accuracy": "max"}
UNITS = {"rmse": "%", "log_loss": "nats", "accuracy": "share"}  # of the distance from the best network
RANKED = {"regression": ["rmse"], "classes": ["log_loss", "accuracy"]}
METRICS = {"regression": ["rmse", "relative_rmse", "coverage", "width"], "classes": ["accuracy", "log_loss"]}
SPLIT = ["table", "split"]
TIE = 0.01  # of a metric: changes below count neither as better nor as worse
ABLATION = """# The defaults, one by one

`LMRegressor()` and `LMClassifier()` with one default changed at a time, {n_splits} splits{but}, by
`quality.py --ablation`, whose text has the protocol. Every fit is compared with the median of three fits of the
defaults to the same rows, which differ in the seed alone. What a change does within the range of their lines, the first
three, says nothing; one that acts only late in a fit (tolerances, epochs) has the seed of the first and is best
compared with that.

- median and worst: the change of RMSE or log loss on the test rows, in per cent of that of the defaults; better and
  worse: the fits in which it changed by more than 1 %;
- rank: the mean among the networks of scikit-learn and skorch at their defaults;
- coverage: of nominal 90 % intervals; accuracy: the mean change in percentage points;
- seconds: the median of the times relative to those of the defaults.

A number for alpha is in units of var(y): y was standardized for it, which leaves no intervals. 50 units were not tried
on digits, for their time; there, with more than 3000 parameters, the defaults would not take the evidence. Batches of
200 rows come without the evidence, too. Geodesic acceleration and the initial weights are no options of the
estimators; quality_models.py has how they were changed."""


def medians(rows, metric, *, worst=None):
    """Return a frame of tables x models with the median over the splits; nan where a model was not run."""
    filled = rows if worst is None else rows.assign(**{metric: rows[metric].fillna(worst)})
    frame = filled.pivot_table(index="table", columns="model", values=metric, aggfunc="median", dropna=False)
    return frame[sorted(frame, key=lambda name: (["sklm", "net", "other"].index(kind(name)), name))]


def field_of(model, names, reference):
    """Return whom a model is compared with: the peers, and for a peer the reference."""
    return [n for n in names if n != model and (kind(n) != "sklm" or (n == reference and kind(model) != "sklm"))]


def ranks(loss, model, field):
    """Return the rank of a model within the field on every table, 1 for the best, ties shared."""
    mine, others = loss[model].dropna(), loss[field]
    others = others.loc[mine.index]
    return 1 + others.lt(mine, axis=0).sum(axis=1) + 0.5 * others.eq(mine, axis=0).sum(axis=1)


def halved(values):
    """Return means over all tables and over each half."""
    groups = {"all tables": values.index} | {half: values.index.intersection(names) for half, names in HALVES.items()}
    return {name: values[index].mean() for name, index in groups.items() if len(index)}


def behind(loss, model, field, *, is_ratio):
    """Return how far the loss is above that of the best of the field, on every table; negative when below."""
    mine, best = loss[model].dropna(), loss[field].min(axis=1)
    best = best[mine.index]
    return 100 * (mine / best - 1) if is_ratio else mine - best


def summary(rows, loss, reference, unit):
    """Return a line per model: mean ranks, distance from the best network, time, intervals."""
    names, lines = list(loss), []
    times, intervals = medians(rows, "seconds"), [c for c in ("coverage", "width") if rows[c].notna().any()]
    for model in names:
        field = field_of(model, names, reference)
        nets = [name for name in field if is_net(name)]
        line = {"model": model, "tables": loss[model].notna().sum()}
        within = halved(ranks(loss, model, nets)) if is_net(model) else {}
        for group in ("all tables", *HALVES):
            line[f"rank among nets, {group}"] = cell(within.get(group))
        line["rank among all"] = cell(ranks(loss, model, field).mean())
        gaps = behind(loss, model, nets, is_ratio=unit == "%")
        line |= {f"median behind best net, {unit}": cell(gaps.median()), f"worst, {unit}": cell(gaps.max())}
        line["median seconds"] = cell(times[model].median())
        for column in intervals:
            line[column] = cell(rows.loc[rows["model"] == model, column].mean())
        lines.append((not is_net(model), within.get("all tables", 0), line))
    return markdown([line for *_, line in sorted(lines, key=lambda entry: entry[:2])])


def cell(value, digits=3):
    if value is None or np.isnan(value):
        return ""
    return "failed" if np.isinf(value) else f"{value:.{digits}g}"


def by_table(frame, *, best=None):
    """Return a markdown table of tables x models, the best network, by "min" or "max", in bold."""
    lines = []
    for half, names in HALVES.items():
        for name in frame.index.intersection(names):
            numbers = frame.loc[name]
            cells = {model: cell(value, 4) for model, value in numbers.items()}
            if best is not None:
                first = numbers[[model for model in cells if is_net(model)]].agg(f"idx{best}")
                cells[first] = f"**{cells[first]}**"
            lines.append({"table": name, "half": half} | cells)
    return markdown(lines)


def goal_lines(rows, reference):
    """Return the lines of the table of goals, on the tables of the reference and against peers that have them all."""
    lines = []
    for task, part in rows.groupby("task", sort=False):
        part = part[part["table"].isin(part.loc[part["model"] == reference, "table"])]
        if part.empty:
            continue
        plain = part[~part["model"].map(is_searched)]
        for metric in RANKED[task]:
            lines += [rank_goal(plain, metric, reference), rank_goal(beside_searched(part), metric, reference)]
        if task == "regression":
            lines += [time_goal(plain, reference), *low_noise_goals(losses(plain, "rmse"), reference)]
    return [
        {"goal": text, "measured": measured, "met": "yes" if met else "no"}
        for text, measured, met in filter(None, lines)
    ]


def beside_searched(rows):
    """Return the rows of those splits of tables that every searched peer has, or none."""
    found = rows[rows["model"].map(is_searched)]
    counts = found.groupby(SPLIT)["model"].nunique()
    return on_splits(rows, counts.index[counts == found["model"].nunique()])


def on_splits(rows, wanted):
    """Return the rows of the wanted pairs of table and split, an index."""
    return rows[pd.MultiIndex.from_frame(rows[SPLIT]).isin(wanted)]


def rank_goal(rows, metric, reference):
    if rows.empty:
        return None
    loss = losses(rows, metric).dropna(axis="columns")
    names = [name for name in loss if is_net(name)]
    mean = {name: ranks(loss, name, field_of(name, names, reference)).mean() for name in names}
    rival = min((name for name in names if kind(name) == "net"), key=mean.get, default=None)
    if rival is None:
        return None
    which = "all networks, searched ones too" if any(map(is_searched, names)) else "networks at their defaults"
    count = 1 + sum(kind(name) == "net" for name in names)
    measured = (
        f"{mean[reference]:.2f} against {mean[rival]:.2f} ({rival}); {count} networks, {len(loss)} tables, "
        f"{rows['split'].nunique()} splits"
    )
    return f"{metric}: mean rank among {which}", measured, mean[reference] <= mean[rival]


def time_goal(rows, reference):
    times = medians(rows, "seconds").dropna(axis="columns").median()
    if "MLP lbfgs" not in times:
        return None
    mine, other = times[reference], times["MLP lbfgs"]
    return "regression: median seconds, against MLP lbfgs", f"{mine:.3g} against {other:.3g}", mine <= other


def low_noise_goals(loss, reference):
    """Return a goal for each smooth table."""
    defaults = [name for name in loss if name.startswith("MLP")]
    gains = 100 * (1 - loss[reference] / loss[defaults].min(axis=1))
    return [
        (f"{name}: RMSE at least 20 % below the best default MLP", f"{gains[name]:.0f} %", gains[name] >= 20)
        for name in loss.index.intersection(LOW_NOISE)
    ]


def losses(rows, metric):
    """Return medians for which lower is better, a failure being infinite."""
    return -medians(rows, metric, worst=-np.inf) if metric == "accuracy" else medians(rows, metric, worst=np.inf)


def notes(rows, n_splits):
    """Return the section on what is incomplete, what failed and what variants are, or nothing."""
    counts = rows[~rows["model"].map(is_searched)].groupby(["table", "model"]).size()
    few = [f"{table} / {model}: {n}" for (table, model), n in counts[counts < n_splits].items()]
    failed = rows[rows["rmse"].isna() & rows["accuracy"].isna()]
    lines = [f"Fewer than {n_splits} splits: {'; '.join(few)}." if few else ""]
    lines += [f"{r.table} {r.split} {r.model}: {r.message}" for r in failed.itertuples()]
    variants = (
        rows[(rows["parameters"] != "") & (rows["model"] != "LM " + rows["parameters"])]
        .groupby("model", sort=False)["parameters"]
        .last()
    )
    lines += [f"{name}: `{text}`" for name, text in variants.items()]
    lines = [f"- {line}" for line in lines if line]
    return ["## Notes", "\n".join(lines)] if lines else []


def selected(rows, n_splits, half):
    """Return the rows of the splits below n_splits, of all tables or of one half, with their task."""
    rows = rows[(rows["split"] < n_splits) & rows["table"].isin(HALVES[half] if half else ALL)]
    return rows.assign(task=rows["table"].map(task_of))


def report(rows, n_splits, half, reference):
    """Return the report on the splits below n_splits, of all tables or of one half."""
    rows = selected(rows, n_splits, half)
    text = [f"# Quality without tuning\n\n{n_splits} splits; reference: {reference}.", machine(), versions()]
    text += [markdown(goals)] if (goals := goal_lines(rows, reference)) else []
    for task, part in rows.groupby("task", sort=False):
        plain = part[~part["model"].map(is_searched)]
        for metric in RANKED[task]:
            text += [f"## {metric}: ranks", summary(plain, losses(plain, metric), reference, UNITS[metric])]
        for metric in [*METRICS[task], "seconds"]:
            shown = plain[plain[metric].notna()] if metric in ("coverage", "width") else plain
            if len(shown):
                text += [
                    f"## {task}: {metric}, median over splits",
                    by_table(medians(shown, metric), best=BEST.get(metric)),
                ]
        text += searched_sections(beside_searched(part), RANKED[task], reference)
    return "\n\n".join([*text, *notes(rows, n_splits)]) + "\n"


def searched_sections(rows, metrics, reference):
    """Return the ranks and tables with the searched peers among the rest, or nothing where there are none."""
    if rows.empty:
        return []
    text, where = [], f"beside searched peers, {rows['split'].nunique()} splits"
    for metric in metrics:
        text += [f"## {metric}: ranks {where}", summary(rows, losses(rows, metric), reference, UNITS[metric])]
    rows = rows[rows["model"].map(is_searched) | (rows["model"] == reference)]
    for metric in (*metrics, "seconds"):
        text += [f"## {metric} {where}, median", by_table(medians(rows, metric), best=BEST.get(metric))]
    return text


# ---------------------------------------------------------------------- ablation


def ablation_report(rows, peers, names, n_splits):
    """Return the report on sklm with single defaults changed.

    `rows` are those of the defaults, with several seeds, and of the changes, whose order is that of `names`; those of
    the other networks are among `peers`.
    """
    rows = selected(rows, n_splits, None)
    peers = on_splits(selected(peers, n_splits, None), pd.MultiIndex.from_frame(rows[SPLIT]))
    peers = peers[[kind(name) == "net" and not is_searched(name) for name in peers["model"]]]
    done = rows.groupby("table", sort=False)["split"].nunique()
    few = [f"{count} of {name}" for name, count in done[done < n_splits].items()]
    but = f" ({', '.join(few)})" if few else ""
    text = [ABLATION.format(n_splits=n_splits, but=but), machine(), versions()]
    for task, part in rows.groupby("task", sort=False):
        metric, present = RANKED[task][0], set(part["model"])
        shown = [name for name in names if name in present]
        ratio = relative(part, metric)
        loss = losses(pd.concat([part, peers[peers["task"] == task]]), metric)
        for title, tables in (("tune half", HALVES["tune"]), ("both halves", ALL)):
            kept = part["table"].isin(tables)
            lines = [change_line(part[kept], ratio[kept], loss[loss.index.isin(tables)], name) for name in shown]
            text += [f"## {task}, {title}", markdown(lines)]
        text += [f"## {task}: change of {metric} in %, by table", changes_by_table(part, ratio, shown)]
    return "\n\n".join([*text, *notes(rows, 1)]) + "\n"


def relative(rows, column):
    """Return every row's value divided by that of the defaults for the same split of the same table."""
    values = rows[column] if column == "seconds" else rows[column].fillna(np.inf)
    return values / of_defaults(rows, column)


def of_defaults(rows, column):
    """Return for every row the median of the fits with default parameters to the same split of the same table."""
    medians_by_split = rows[rows["parameters"] == ""].groupby(SPLIT)[column].median().rename("base")
    return rows[SPLIT].join(medians_by_split, on=SPLIT)["base"]


def change_line(rows, ratio, loss, name):
    """Return the line of a changed default: every fit against those of the defaults to the same rows."""
    is_mine, nets = rows["model"] == name, [model for model in loss if kind(model) == "net"]
    mine, ratio = rows[is_mine], ratio[is_mine]
    line = {"change": label(name), "median, %": cell(100 * (ratio.median() - 1))}
    line |= {"worst, %": cell(100 * (ratio.max() - 1)), "better": (ratio < 1 - TIE).sum()}
    line |= {"worse": (ratio > 1 + TIE).sum(), "fits": len(ratio), "rank": f"{ranks(loss, name, nets).mean():.2f}"}
    if rows["coverage"].notna().any():
        line["coverage"] = cell(mine["coverage"].mean())
    else:
        gain = 100 * (rows["accuracy"] - of_defaults(rows, "accuracy"))[is_mine].mean()
        line["accuracy, points"] = f"{gain:.2f}"
    line["seconds"] = cell(relative(rows, "seconds")[is_mine].median())
    return line


def label(name):
    return name.removeprefix("LM").strip() or "none"


def changes_by_table(rows, ratio, names):
    """Return a markdown table of changes x tables: the median over the splits."""
    frame = rows.assign(ratio=100 * (ratio - 1)).pivot_table(
        index="model", columns="table", values="ratio", aggfunc="median"
    )
    columns = [name for name in ALL if name in frame]
    return markdown([{"change": label(name)} | {c: cell(frame.loc[name, c]) for c in columns} for name in names])
