// The list of features: search, filters, and a Tabulator table that draws only the visible rows.
(function () {
  "use strict";
  const { html, useEffect, useRef, useState } = htmPreact;
  const { format, meanings, route, filters, data } = MT;
  const { columns, mark, onlyScale } = MT.columns;
  const ROW_HEIGHT = 36;

  // The table and its selection. It lives as long as the page, so it is unchanged when the reader returns to the list.
  class Table {
    constructor(place, explore, listen) {
      this.order = this.sort(route.now().query);
      this.ready = new Promise((resolve) => {
        this.grid = new Tabulator(place, {
          data: data.features(), index: "feature", columns: columns(explore), height: "100%", rowHeight: ROW_HEIGHT, layout: "fitColumns",
          responsiveLayout: "hide", selectableRows: "highlight", renderVertical: "virtual", placeholder: "No feature matches the search and all filters.",
          columnHeaderSortMulti: false, initialSort: [{ column: this.order.field, dir: this.order.dir }],
        });
        this.grid.on("tableBuilt", resolve);
      });
      this.grid.on("rowClick", (event, row) => event.target.closest("a") || route.go("feature", row.getData().feature));
      this.grid.on("dataSorted", ([by]) => {
        if (!by || filters.same(by, this.order)) return; // not a click of the reader
        this.order = { field: by.field, dir: by.dir };
        listen.sorted(this.order);
      });
      this.grid.on("dataFiltered", (_, rows) => listen.counted(rows.length));
      this.at = -1;
    }

    sort(query) {
      const wanted = filters.sorting(query);
      const known = columns(data.explore()).some((column) => column.field === wanted.field && column.headerSort !== false);
      return known ? wanted : filters.defaultSorting(query);
    }

    // Updates the table to the current address: a key may be pressed before the page has reacted to the address, and a rendering may be late.
    follow() {
      const { view, query } = route.now();
      if (view === "list") this.show(query);
    }

    show(query) {
      const address = JSON.stringify(query);
      if (address === this.shown) return;
      this.shown = address;
      const text = filters.searchText(query);
      mark(text);
      const before = this.order;
      this.order = this.sort(query);
      if (this.order.field === "match") data.features().forEach((row) => (row.match = filters.rank(row, text)));
      this.grid.blockRedraw();
      if (this.order.field === "match" || !filters.same(before, this.order)) this.grid.setSort(this.order.field, this.order.dir);
      this.grid.setFilter(filters.predicate(query));
      this.grid.restoreRedraw();
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
      document.activeElement.blur(); // or the hidden search field would receive the next key
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

  // For narrow windows, where hidden columns have no header to click.
  function SortBy({ explore, query }) {
    const text = (field, dir) => field + ":" + dir;
    const directions = { desc: ", highest first", asc: ", lowest first" };
    const names = columns(explore).filter((column) => column.headerSort !== false && column.field !== "feature");
    const option = ({ title, field, sorter }, dir) => [text(field, dir), title + (sorter === "string" ? (dir === "asc" ? ", a to z" : ", z to a") : directions[dir])];
    const options = names.map((column) => option(column, column.headerSortStartingDir));
    const { field, dir } = filters.sorting(query);
    const now = names.find((column) => column.field === field);
    if (now && dir !== now.headerSortStartingDir) options.push(option(now, dir));
    const number = filters.searchText(query) ? [["", "best match"], ["feature:asc", "number"]] : [["", "number"]];
    return html`<div class="sortby"><${Choice} name="sort" label="Sort by" query=${query} options=${[...number, ...options]} /></div>`;
  }

  // If one time scale has the largest share for all features, a sentence replaces the column and the filter.
  function OnlyScale() {
    const scale = onlyScale();
    if (scale === null) return null;
    const what = scale === 0 ? "The token alone has the largest share of the lift in every feature" : "A " + format.dilation(scale) + " has the largest share of the lift in every feature";
    return html`<p class="note">${what}; see Context for the share of earlier tokens.</p>`;
  }

  function Filters({ explore, query, shown }) {
    const scales = explore.dilations.length > 0 && (onlyScale() === null || query.dilation);
    const dilations = explore.dilations.map((value) => [String(value), format.dilation(value)]);
    const dead = [["", "hidden"], ["show", "shown"], ["only", "only"]];
    const total = data.features().length;
    return html`<form class="filters" role="search" onSubmit=${(event) => event.preventDefault()}>
      <label class="search"><span class="sr">Search top tokens, promoted tokens or a feature number</span>
        <${MT.Field} id="search" type="search" placeholder="Search tokens or a feature number" spellcheck="false"
          value=${query.q || ""} onValue=${({ value }) => route.amend({ q: value })} /><kbd aria-hidden="true">/</kbd></label>
      ${scales && html`<${Choice} name="dilation" label="Time scale" query=${query} options=${[["", "any"], ...dilations]} />`}
      <${Choice} name="dead" label="Dead" query=${query} options=${dead} />
      <${SortBy} explore=${explore} query=${query} />
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
          if (view === "list") route.amend({ sort: filters.sortText(sorting, now) });
        };
        table.current = MT.table = new Table(place.current, explore, { sorted, counted: setShown });
      }
      table.current.ready.then(() => table.current.follow());
    }, [hidden, JSON.stringify(query)]);
    return html`<section class="list" hidden=${hidden} aria-label="Features">
      <${Filters} explore=${explore} query=${query} shown=${shown} />
      ${explore.dilations.length === 0 && html`<p class="note">This SAE reads one position: its features have no time scales.</p>`}
      ${explore.dilations.length > 0 && html`<${OnlyScale} />`}
      <div class="table" ref=${place}></div>
    </section>`;
  }

  MT.List = List;
})();
