"""A workspace of W&B for the cells of a benchmark: a saved page of panels that compare them."""

from __future__ import annotations

import wandb_workspaces.reports.v2 as panels
import wandb_workspaces.workspaces as workspaces

from cnnbench.report.wandb_panels import STEP


def make_workspace(entity: str, project: str, group: str) -> str:
    """Save a workspace that shows a group of runs, and return its address.

    Args:
        entity: User or team.
        project: Project of the runs.
        group: Group of the runs.
    """
    accuracy = panels.SummaryMetric("test_accuracy")
    costs = {"macs": "multiply-adds", "latency_ms_median": "latency of one image, ms", "params": "parameters"}
    networks = []
    for key, title in costs.items():
        chart = f"Test accuracy against {title}"
        networks.append(panels.ScatterPlot(title=chart, x=panels.SummaryMetric(key), y=accuracy, log_x=True))
    networks.append(panels.BarPlot(title="Test accuracy", metrics=["test_accuracy"]))
    columns = [panels.ParallelCoordinatesPlotColumn(panels.SummaryMetric(key), log=True) for key in costs]
    columns.append(panels.ParallelCoordinatesPlotColumn(accuracy))
    networks.append(panels.ParallelCoordinatesPlot(title="Costs and accuracy", columns=columns))
    curves = []
    for name in ("loss", "accuracy"):
        for split in ("train", "val"):
            curves.append(panels.LinePlot(title=f"{split} {name}", x=STEP, y=[f"{split}/{name}"]))
    workspace = workspaces.Workspace(
        entity=entity,
        project=project,
        name=group,
        sections=[
            workspaces.Section(name="Networks", panels=networks, is_open=True),
            workspaces.Section(name="Learning curves", panels=curves, is_open=True),
        ],
        runset_settings=workspaces.RunsetSettings(filters=[workspaces.Metric("Group") == group]),
    )
    workspace.save()
    return str(workspace.url)
