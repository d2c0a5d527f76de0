// The columns of the list, and their cells.
(function () {
  "use strict";
  const { html, render } = htmPreact;
  const { format, meanings, titles, route, data, tokens } = MT;
  const N_PROMOTED = 5;

  // What htm draws, as an element for Tabulator: text never passes through markup.
  function element(content) {
    const place = document.createElement("div");
    render(content, place);
    return place;
  }

  // Cells that mark what is searched for are drawn again when that changes, for Tabulator keeps the cells that it has.
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

  const finds = (text) => wanted !== "" && (text || "").toLowerCase().includes(wanted);
  const is = (text) => wanted !== "" && (text || "").toLowerCase().trim() === wanted;
  const Found = ({ text, kind = "" }) => html`<${tokens.Chip} text=${text} kind=${kind + (finds(text) ? " found" : "")} />`;

  // For a window too narrow for the promoted tokens: the one of them that answers the search.
  const Answer = ({ row }) =>
    finds(row.top_token) || !promoted(row).some(finds) ? null : html` <span class="answer"><${Found} text=${promoted(row).find(is) || promoted(row).find(finds)} /></span>`;

  // The first few promoted tokens; the one that answers the search stands in place of the last where it is none of them.
  function promoted({ top_token: top, promoted_tokens: all }) {
    const shown = (all || []).slice(0, N_PROMOTED);
    const answer = [top, ...shown].some(is) ? undefined : (all || []).find(is) || ([top, ...shown].some(finds) ? undefined : (all || []).find(finds));
    return answer === undefined || shown.includes(answer) ? shown : [...shown.slice(0, -1), answer];
  }

  function shares(row, dilations) {
    const label = (row.scale_shares || []).map((share, at) => format.dilation(dilations[at]) + " " + format.percent(share)).join(", ");
    return html`<span class="spark" role="img" aria-label=${label} title=${label}>
      ${(row.scale_shares || []).map((share) => html`<span style=${{ height: Math.max(4, Math.min(1, share) * 100) + "%" }}></span>`)}
    </span>`;
  }

  const live = () => data.features().filter((row) => row.n_active > 0);
  const measured = (field) => data.features().some((row) => row[field] !== null);

  // The one time scale that does most for every feature; null where they differ.
  function onlyScale() {
    const found = new Set(live().map((row) => row.main_dilation));
    return found.size === 1 ? [...found][0] : null;
  }

  // Of how many peaks the mean is, where the settings say it.
  function ablated(explore) {
    const { n_ablated: n } = (explore.provenance || {}).settings || {};
    return n ? " Here over at most " + n + (n === 1 ? " peak." : " peaks.") : "";
  }

  function build(explore) {
    const temporal = explore.dilations.length > 0;
    const numeric = (title, field, show, responsive) => ({
      title, field, responsive, hozAlign: "right", headerHozAlign: "right", sorter: "number", width: 96, headerTooltip: meanings[field],
      sorterParams: { alignEmptyValues: "bottom" }, headerSortStartingDir: "desc", formatter: (cell) => show(cell.getValue()),
    });
    const all = [
      { ...numeric("#", "feature", String, 0), width: 56, headerSortStartingDir: "asc",
        formatter: (cell) => element(html`<a href=${route.address("feature", cell.getValue())} tabindex="-1">${cell.getValue()}</a>`) },
      { title: "Top token", field: "top_token", responsive: 0, minWidth: 88, widthGrow: 1, sorter: "string", headerTooltip: meanings.top_token,
        headerSortStartingDir: "asc", sorterParams: { alignEmptyValues: "bottom" },
        formatter: (cell) => markedCell(cell, (row) => html`<${Found} text=${row.top_token} /><${Answer} row=${row} />`) },
      { title: "Promotes", field: "promoted_tokens", responsive: 2, minWidth: 170, widthGrow: 2, headerSort: false, headerTooltip: meanings.promoted_tokens,
        formatter: (cell) => markedCell(cell, (row) => html`<span class="chips">${promoted(row).map((text) => html`<${Found} text=${text} kind="quiet" />`)}</span>`) },
      { ...numeric("Density", "density", (value) => format.share(value, 3), 1), width: 90 },
      numeric("Max", "max_activation", format.number, 4),
      temporal && onlyScale() === null && { ...numeric("Time scale", "main_dilation", format.dilation, 3), width: 116, headerSortStartingDir: "asc" },
      temporal && { title: "Scales", field: "scale_shares", responsive: 1, width: 76, headerSort: false, headerTooltip: meanings.scale_shares,
        formatter: (cell) => element(shares(cell.getData(), explore.dilations)) },
      temporal && numeric("Context", "context_share", format.share, 3),
      numeric("Run", "mean_run_length", (value) => format.fixed(value, 2), 5),
      measured("selectivity") && { ...numeric("Selectivity", "selectivity", (value) => format.signed(value, 1), 5), width: 108 },
      measured("ablation_next_nll") && { ...numeric("Ablation", "ablation_next_nll", (value) => format.signed(value, 3), 4), width: 100, headerTooltip: meanings.ablation_next_nll + ablated(explore) },
      { title: "", field: "match", visible: false, headerSort: false, sorter: (a, b, one, other) => a - b || one.getData().feature - other.getData().feature },
    ];
    return all.filter(Boolean);
  }

  let made = null; // they are the same as long as the page is
  const columns = (explore) => (made = made || build(explore));

  MT.columns = { columns, mark, onlyScale };
})();
