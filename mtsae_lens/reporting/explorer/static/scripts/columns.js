// The columns of the list and their cells. A column that Python marks as `in_list` is shown by an entry in `build`.
(function () {
  "use strict";
  const { html, render } = htmPreact;
  const { format, meanings, titles, route, data, tokens } = MT;
  const N_PROMOTED = 5;

  // Renders htm content into an element for Tabulator, so that no text is parsed as HTML.
  function element(content) {
    const place = document.createElement("div");
    render(content, place);
    return place;
  }

  // Tabulator keeps its cells, so cells that mark the searched text are rendered again when the search changes.
  const marked = new Map();
  let wanted = "";

  function markedCell(cell, content) {
    const place = document.createElement("div");
    const row = cell.getData();
    const draw = () => render(content(row), place);
    marked.set(cell.getField() + row.feature, draw);
    draw();
    return place;
  }

  function mark(text) {
    if (text === wanted) return;
    wanted = text;
    marked.forEach((draw) => draw());
  }

  const contains = (text) => wanted !== "" && (text || "").toLowerCase().includes(wanted);
  const equals = (text) => wanted !== "" && (text || "").toLowerCase().trim() === wanted;
  const Found = ({ text, kind = "" }) => html`<${tokens.Chip} text=${text} kind=${kind + (contains(text) ? " found" : "")} />`;

  // The promoted token that matches the search, for windows too narrow for the column of promoted tokens.
  const Match = ({ row }) =>
    contains(row.top_token) || !promoted(row).some(contains) ? null : html` <span class="answer"><${Found} text=${promoted(row).find(equals) || promoted(row).find(contains)} /></span>`;

  // The first promoted tokens. If only a later one matches the search, it replaces the last of them.
  function promoted({ top_token: top, promoted_tokens: all }) {
    const shown = (all || []).slice(0, N_PROMOTED);
    const match = [top, ...shown].some(equals) ? undefined : (all || []).find(equals) || ([top, ...shown].some(contains) ? undefined : (all || []).find(contains));
    return match === undefined || shown.includes(match) ? shown : [...shown.slice(0, -1), match];
  }

  function shareBars(row, dilations) {
    const label = (row.scale_shares || []).map((share, at) => format.dilation(dilations[at]) + " " + format.percent(share)).join(", ");
    return html`<span class="spark" role="img" aria-label=${label} title=${label}>
      ${(row.scale_shares || []).map((share) => html`<span style=${{ height: Math.max(4, Math.min(1, share) * 100) + "%" }}></span>`)}
    </span>`;
  }

  const isMeasured = (field) => data.features().some((row) => row[field] !== null);

  // The time scale with the largest share of the lift, if it is the same for all features that fired; null otherwise.
  function onlyScale() {
    const found = new Set(data.features().filter((row) => row.n_active > 0).map((row) => row.main_dilation));
    return found.size === 1 ? [...found][0] : null;
  }

  // How many peaks the mean is over, if the settings are recorded.
  function peaksOfMean(explore) {
    const { n_ablated: n } = (explore.provenance || {}).settings || {};
    return n ? " Here: at most " + n + (n === 1 ? " peak." : " peaks.") : "";
  }

  function build(explore) {
    const temporal = explore.dilations.length > 0;
    const numeric = (field, show, responsive, title = titles[field]) => ({
      title, field, responsive, hozAlign: "right", headerHozAlign: "right", sorter: "number", width: 96, headerTooltip: meanings[field],
      sorterParams: { alignEmptyValues: "bottom" }, headerSortStartingDir: "desc", formatter: (cell) => show(cell.getValue()),
    });
    const all = [
      { ...numeric("feature", String, 0, "#"), width: 56, headerSortStartingDir: "asc",
        formatter: (cell) => element(html`<a href=${route.address("feature", cell.getValue())} tabindex="-1">${cell.getValue()}</a>`) },
      { title: titles.top_token, field: "top_token", responsive: 0, minWidth: 88, widthGrow: 1, sorter: "string", headerTooltip: meanings.top_token,
        headerSortStartingDir: "asc", sorterParams: { alignEmptyValues: "bottom" },
        formatter: (cell) => markedCell(cell, (row) => html`<${Found} text=${row.top_token} /><${Match} row=${row} />`) },
      { title: titles.promoted_tokens, field: "promoted_tokens", responsive: 2, minWidth: 170, widthGrow: 2, headerSort: false, headerTooltip: meanings.promoted_tokens,
        formatter: (cell) => markedCell(cell, (row) => html`<span class="chips">${promoted(row).map((text) => html`<${Found} text=${text} kind="quiet" />`)}</span>`) },
      { ...numeric("density", (value) => format.share(value, 3), 1), width: 90 },
      numeric("max_activation", format.number, 4),
      temporal && onlyScale() === null && { ...numeric("main_dilation", format.dilation, 3), width: 116, headerSortStartingDir: "asc" },
      temporal && { title: "Scales", field: "scale_shares", responsive: 1, width: 76, headerSort: false, headerTooltip: meanings.scale_shares,
        formatter: (cell) => element(shareBars(cell.getData(), explore.dilations)) },
      temporal && numeric("context_share", format.share, 3),
      numeric("mean_run_length", (value) => format.fixed(value, 2), 5, "Run"),
      isMeasured("next_persistence") && numeric("next_persistence", format.share, 5),
      isMeasured("carried_over") && numeric("carried_over", format.share, 4, "Carried"),
      isMeasured("selectivity") && { ...numeric("selectivity", (value) => format.signed(value, 1), 5), width: 108 },
      isMeasured("ablation_next_nll") && { ...numeric("ablation_next_nll", (value) => format.signed(value, 3), 4, "Ablation"), width: 100, headerTooltip: meanings.ablation_next_nll + peaksOfMean(explore) },
      { title: "", field: "match", visible: false, headerSort: false, sorter: (a, b, one, other) => a - b || one.getData().feature - other.getData().feature },
    ];
    return all.filter(Boolean);
  }

  let made = null; // the columns never change, so they are made once
  const columns = (explore) => (made = made || build(explore));

  MT.columns = { columns, mark, onlyScale };
})();
