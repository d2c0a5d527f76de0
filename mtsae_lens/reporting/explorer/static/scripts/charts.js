// Charts: uPlot for histograms and curves, tables with bars for named values.
(function () {
  "use strict";
  const { html, useEffect, useRef, useState } = htmPreact;
  const { format, theme } = MT;

  function useTheme() {
    const [name, setName] = useState(theme.current);
    useEffect(() => theme.listen(setName), []);
    return name;
  }

  // A uPlot chart as wide as its container. `options(color)` is called again when the theme changes; `color(name)` reads a CSS variable.
  function Chart({ options, data, label, height = 140 }) {
    const place = useRef(null);
    const themeName = useTheme();
    useEffect(() => {
      const shared = { width: place.current.clientWidth || 280, height, legend: { show: false }, cursor: { show: false } };
      const chart = new uPlot({ ...shared, ...options(theme.color) }, data, place.current);
      const watch = new ResizeObserver(([entry]) => {
        const width = Math.floor(entry.contentRect.width);
        if (width > 0 && width !== chart.width) chart.setSize({ width, height });
      });
      watch.observe(place.current);
      return () => (watch.disconnect(), chart.destroy());
    }, [data, themeName, height]);
    return html`<div class="chart" role="img" aria-label=${label} ref=${place}></div>`;
  }

  function axis(color, changes) {
    const line = { stroke: color("--line"), width: 1 };
    return { stroke: color("--muted"), grid: { ...line, show: false }, ticks: { ...line, size: 4 }, font: "11px system-ui", ...changes };
  }

  const bars = (color) => ({
    fill: color("--accent"),
    stroke: color("--accent"),
    width: 0,
    paths: uPlot.paths.bars({ size: [0.86, 40] }),
    points: { show: false },
  });

  // Counts on a logarithmic axis. The edges of the bins are logarithmic too, so the bins are drawn side by side with equal widths.
  function Histogram({ counts, edges, max, label }) {
    const first = Math.max(0, counts.findIndex((value) => value > 0));
    const last = counts.length - [...counts].reverse().findIndex((value) => value > 0);
    const shown = counts.slice(first, last);
    const data = [shown.map((_, place) => place + 0.5), shown.map((value) => value || null)];
    const edge = (place) => format.number(place === shown.length ? max : edges[first + place], place === shown.length ? 3 : 2);
    const options = (color) => ({
      scales: { x: { time: false, range: [0, shown.length] }, y: { distr: 3, range: (chart, low, high) => [0.5, Math.max(10, high * 1.4)] } },
      series: [{}, bars(color)],
      axes: [
        axis(color, { size: 26, splits: () => ends(shown.length), values: (chart, splits) => splits.map(edge) }),
        axis(color, { size: 44, values: (chart, splits) => splits.map((v) => (Math.log10(v) % 1 === 0 ? format.count(v) : "")) }),
      ],
    });
    return html`<${Chart} options=${options} data=${data} label=${label} />`;
  }

  const ends = (length) => [0, Math.round(length / 3), Math.round((2 * length) / 3), length];

  function Curve({ x, y, xLabel, label }) {
    const places = x.map((_, place) => place);
    const options = (color) => ({
      scales: { x: { time: false, range: [-0.3, x.length - 0.7] }, y: { range: [0, Math.max(0.05, ...y) * 1.15] } },
      series: [{}, { stroke: color("--accent"), width: 2, points: { show: true, size: 7, fill: color("--accent") } }],
      axes: [
        axis(color, { size: 24, label: xLabel, labelSize: 16, labelFont: "11px system-ui", labelGap: 2, splits: () => places, values: () => x.map(String) }),
        axis(color, { size: 42, space: 34, values: (chart, splits) => splits.map((value) => Math.round(value * 100) + " %") }),
      ],
    });
    return html`<${Chart} options=${options} data=${[places, y]} label=${label} height=${132} />`;
  }

  // A table of names, values and bars. The value `most` fills its bar. With `diverging`, bars start in the middle: positive values go right,
  // negative ones left.
  function BarTable({ caption, rows, most, diverging = false, foot = null }) {
    return html`<table class="bars">
      <caption class="sr">${caption}</caption>
      <tbody>
        ${rows.map(
          (row) => html`<tr class=${row.main ? "main" : ""}>
            <th scope="row">${row.name}</th>
            <td class="num" data-value=${row.value}>${row.shown}</td>
            <td class="bar" aria-hidden="true"><${Bar} share=${(row.value || 0) / (most || 1)} diverging=${diverging} /></td>
          </tr>`,
        )}
      </tbody>
      ${foot && html`<tfoot>${foot.map(([name, shown]) => html`<tr><th scope="row">${name}</th><td class="num">${shown}</td><td></td></tr>`)}</tfoot>`}
    </table>`;
  }

  function Bar({ share, diverging }) {
    const width = Math.min(1, Math.abs(share)) * (diverging ? 50 : 100);
    const style = diverging ? { width: width + "%", left: share < 0 ? 50 - width + "%" : "50%" } : { width: width + "%" };
    const kind = diverging ? (share < 0 ? "down" : "up") : "";
    return html`<span class="track ${diverging ? "diverging" : ""}"><span class="fill ${kind}" style=${style}></span></span>`;
  }

  const largest = (values) => Math.max(0, ...values.map((value) => Math.abs(value || 0)));

  MT.charts = { Histogram, Curve, BarTable, largest };
})();
