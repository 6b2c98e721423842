// Draws the training curves with uPlot. The cursor shows the values of all; the legend hides each.

"use strict";

const COLOURS = ["#4d7cfe", "#f08c2e", "#2fa36b", "#d64f8c", "#8e63d9", "#1da7c4", "#b58a14", "#e2504a", "#6b8f3a", "#7d8597"];

function drawChart(figure) {
  const data = JSON.parse(figure.querySelector("script").textContent), place = figure.querySelector(".plot");
  const ink = (name) => () => getComputedStyle(figure).getPropertyValue(name).trim() || getComputedStyle(figure).color;
  const axis = { stroke: ink("color"), grid: { stroke: "rgb(128 128 128 / .2)" }, ticks: { stroke: "rgb(128 128 128 / .2)" } };
  const colour = (series, index) => COLOURS[(series.colour ?? index) % COLOURS.length];
  const lines = [], bands = [], tables = [[[0], [null]]]; // the axis starts at step 0
  for (const [index, series] of data.series.entries()) {
    const first = lines.length + 2; // of this series in the plot, after the steps and what starts the axis
    lines.push({
      label: series.name,
      stroke: colour(series, index) + (series.faint ? "55" : ""),
      width: series.faint ? 1 : 2,
      dash: index >= COLOURS.length ? [6, 4] : undefined,
      spanGaps: true,
      points: { show: series.x.length < 40, size: 5 },
      value: (_, value) => (value == null ? "" : Number(value.toPrecision(4)).toString()),
    });
    tables.push([series.x, series.y, ...(series.low ? [series.high, series.low] : [])]);
    if (!series.low) continue;
    for (const end of ["high", "low"]) lines.push({ label: `${series.name} ${end}`, class: "edge", stroke: "transparent", spanGaps: true, points: { show: false } });
    bands.push({ series: [first + 1, first + 2], fill: colour(series, index) + "22" });
  }
  const options = {
    width: place.clientWidth,
    height: 260,
    scales: { x: { time: false } },
    axes: [{ ...axis, label: data.x, labelSize: 20, size: 36 }, { ...axis, label: data.y, labelSize: 20, size: 56 }],
    series: [{ label: data.x }, { class: "edge" }, ...lines],
    bands,
    hooks: {
      setSeries: [
        (plot, index, { show }) => {
          const band = bands.find(({ series: [high] }) => high === index + 1);
          if (band && show != null) for (const edge of band.series) plot.setSeries(edge, { show });
        },
      ],
    },
  };
  const plot = new uPlot(options, uPlot.join(tables), place);
  new ResizeObserver(() => plot.setSize({ width: place.clientWidth, height: options.height })).observe(place);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => plot.redraw());
}

for (const figure of document.querySelectorAll(".chart")) drawChart(figure);
