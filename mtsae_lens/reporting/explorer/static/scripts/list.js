// The list of features: search, filters, and a table that draws only the rows in sight (Tabulator).
(function () {
  "use strict";
  const { html, render, useEffect, useRef, useState } = htmPreact;
  const { format, meanings, route, filters, data, tokens } = MT;
  const ROW_HEIGHT = 36;

  // What htm draws, as an element for Tabulator: text never passes through markup.
  function element(content) {
    const place = document.createElement("div");
    render(content, place);
    return place;
  }

  function shares(row, dilations) {
    const label = (row.scale_shares || []).map((share, at) => format.dilation(dilations[at]) + " " + format.percent(share)).join(", ");
    return html`<span class="spark" role="img" aria-label=${label} title=${label}>
      ${(row.scale_shares || []).map((share) => html`<span style=${{ height: Math.max(4, Math.min(1, share) * 100) + "%" }}></span>`)}
    </span>`;
  }

  function columns(explore) {
    const temporal = explore.dilations.length > 0;
    const measured = (field) => data.features().some((row) => row[field] !== null);
    const numeric = (title, field, show, responsive) => ({
      title, field, responsive, hozAlign: "right", headerHozAlign: "right", sorter: "number", width: 96, headerTooltip: meanings[field],
      sorterParams: { alignEmptyValues: "bottom" }, headerSortStartingDir: "desc", formatter: (cell) => show(cell.getValue()),
    });
    const all = [
      { ...numeric("#", "feature", String, 0), width: 56, headerSortStartingDir: "asc",
        formatter: (cell) => element(html`<a href=${route.address("feature", cell.getValue())} tabindex="-1">${cell.getValue()}</a>`) },
      { title: "Top token", field: "top_token", responsive: 0, minWidth: 88, widthGrow: 1, sorter: "string", headerTooltip: meanings.top_token,
        sorterParams: { alignEmptyValues: "bottom" }, formatter: (cell) => element(html`<${tokens.Chip} text=${cell.getValue()} />`) },
      { title: "Promotes", field: "promoted_tokens", responsive: 2, minWidth: 170, widthGrow: 2, headerSort: false, headerTooltip: meanings.promoted_tokens,
        formatter: (cell) => element(html`${(cell.getValue() || []).slice(0, 5).map((text) => html`<${tokens.Chip} text=${text} kind="quiet" />`)}`) },
      { ...numeric("Density", "density", format.percent, 1), width: 90 },
      numeric("Max", "max_activation", format.number, 4),
      temporal && { ...numeric("Time scale", "main_dilation", format.dilation, 3), width: 116, headerSortStartingDir: "asc" },
      temporal && { title: "Scales", field: "scale_shares", responsive: 1, width: 76, headerSort: false, headerTooltip: meanings.scale_shares,
        formatter: (cell) => element(shares(cell.getData(), explore.dilations)) },
      temporal && numeric("Context", "context_share", format.percent, 3),
      numeric("Run", "mean_run_length", format.number, 5),
      measured("selectivity") && { ...numeric("Selectivity", "selectivity", (value) => format.signed(value, 1), 5), width: 108 },
      measured("ablation_next_nll") && { ...numeric("Ablation", "ablation_next_nll", (value) => format.signed(value, 3), 4), width: 100 },
    ];
    return all.filter(Boolean);
  }

  // The table and what is selected in it; it lives as long as the page, so that coming back finds it as it was.
  class Table {
    constructor(place, explore, listen) {
      this.ready = new Promise((resolve) => {
        this.grid = new Tabulator(place, {
          data: data.features(), index: "feature", columns: columns(explore), height: "100%", rowHeight: ROW_HEIGHT, layout: "fitColumns",
          responsiveLayout: "hide", selectableRows: "highlight", renderVertical: "virtual", placeholder: "No feature answers to all of this.",
          columnHeaderSortMulti: false, initialSort: [this.sort(route.now().query)].map(({ field, dir }) => ({ column: field, dir })),
        });
        this.grid.on("tableBuilt", resolve);
      });
      this.grid.on("rowClick", (event, row) => event.target.closest("a") || route.go("feature", row.getData().feature));
      this.grid.on("dataSorted", (sorters) => sorters.length && listen.sorted({ field: sorters[0].field, dir: sorters[0].dir }));
      this.grid.on("dataFiltered", (_, rows) => listen.counted(rows.length));
      this.at = -1;
    }

    sort(query) {
      const wanted = filters.sorting(query);
      const known = columns(data.explore()).some((column) => column.field === wanted.field && column.headerSort !== false);
      return known ? wanted : { field: "feature", dir: "asc" };
    }

    // As the address is now: a key may come before the page has followed it, and a drawing may be late.
    follow() {
      const { view, query } = route.now();
      if (view === "list") this.show(query);
    }

    show(query) {
      const asked = JSON.stringify(query);
      if (asked === this.shown) return;
      this.shown = asked;
      this.grid.setFilter(filters.predicate(query));
      const wanted = this.sort(query);
      const [now] = this.grid.getSorters();
      if (!now || now.field !== wanted.field || now.dir !== wanted.dir) this.grid.setSort(wanted.field, wanted.dir);
      this.at = -1;
      this.grid.deselectRow();
    }

    move(step) {
      this.follow();
      const rows = this.grid.getRows("active");
      if (!rows.length) return;
      this.at = Math.max(0, Math.min(rows.length - 1, this.at + step));
      this.grid.deselectRow();
      rows[this.at].select();
      this.grid.scrollToRow(rows[this.at], "nearest", false);
    }

    open() {
      this.follow();
      const row = this.grid.getRows("active")[Math.max(0, this.at)];
      if (!row) return;
      document.activeElement.blur(); // a search that is no longer seen would swallow the next key
      route.go("feature", row.getData().feature);
    }
  }

  function Bound({ name, label, query, title }) {
    return html`<label title=${title}><span>${label}</span>
      <${MT.Field} type="text" inputmode="decimal" value=${query[name] || ""} onValue=${({ value }) => route.amend({ [name]: value })} /></label>`;
  }

  function Choice({ name, label, query, options }) {
    return html`<label><span>${label}</span>
      <select value=${query[name] || ""} onChange=${(event) => route.amend({ [name]: event.target.value })}>
        ${options.map(([value, text]) => html`<option value=${value} selected=${value === (query[name] || "")}>${text}</option>`)}
      </select></label>`;
  }

  function Filters({ explore, query, shown }) {
    const dilations = explore.dilations.map((value) => [String(value), format.dilation(value)]);
    const dead = [["", "hidden"], ["show", "shown"], ["only", "only these"]];
    const total = data.features().length;
    return html`<form class="filters" role="search" onSubmit=${(event) => event.preventDefault()}>
      <label class="search"><span class="sr">Search tokens, promoted tokens or a feature's number</span>
        <${MT.Field} id="search" type="search" placeholder="Search tokens or a feature number" spellcheck="false"
          value=${query.q || ""} onValue=${({ value }) => route.amend({ q: value })} /><kbd aria-hidden="true">/</kbd></label>
      ${dilations.length > 0 && html`<${Choice} name="dilation" label="Time scale" query=${query} options=${[["", "any"], ...dilations]} />`}
      <${Choice} name="dead" label="Dead" query=${query} options=${dead} />
      <${Bound} name="dmin" label="Density from, %" query=${query} title=${meanings.density} />
      <${Bound} name="dmax" label="to, %" query=${query} title=${meanings.density} />
      ${explore.corpora.length > 1 && html`<${Bound} name="smin" label="Selectivity from" query=${query} title=${meanings.selectivity} />`}
      <output class="count" aria-live="polite"><b>${format.count(shown)}</b> of ${format.count(total)} features</output>
    </form>`;
  }

  function List({ query, hidden }) {
    const explore = data.explore();
    const place = useRef(null);
    const table = useRef(null);
    const [shown, setShown] = useState(data.features().length);
    useEffect(() => {
      if (hidden) return;
      if (!table.current) {
        const sorted = (sorting) => {
          const { view, query: now } = route.now();
          if (view === "list" && filters.sortText(sorting) !== filters.sortText(filters.sorting(now))) route.amend({ sort: filters.sortText(sorting) });
        };
        table.current = MT.table = new Table(place.current, explore, { sorted, counted: setShown });
      }
      table.current.ready.then(() => table.current.follow());
    }, [hidden, JSON.stringify(query)]);
    return html`<section class="list" hidden=${hidden} aria-label="Features">
      <${Filters} explore=${explore} query=${query} shown=${shown} />
      ${explore.dilations.length === 0 && html`<p class="note">This SAE reads one position: its features have no time scales.</p>`}
      <div class="table" ref=${place}></div>
    </section>`;
  }

  MT.List = List;
})();
