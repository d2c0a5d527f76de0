// Which features the list shows, and in which order: pure functions of rows and of the address's query.
(function () {
  "use strict";

  const asNumber = (text) => (text === undefined || text === "" || Number.isNaN(Number(text)) ? null : Number(text));

  const searchText = (query) => (query.q || "").toLowerCase().trim();

  // Returns a test of rows. A number matches features whose number begins with it, and tokens that contain it; `#885` matches feature 885
  // alone; other text matches top tokens and promoted tokens.
  function matcher(wanted) {
    const exact = wanted.match(/^#(\d+)$/);
    if (exact) return (row) => row.feature === Number(exact[1]);
    if (/^\d+$/.test(wanted)) return (row) => String(row.feature).startsWith(wanted) || row.text.includes(wanted);
    return (row) => row.text.includes(wanted);
  }

  // Ranks a match, best first: number or top token, then promoted tokens in their order, then the beginning of a token, then any part of one.
  function rank(row, wanted) {
    if (String(row.feature) === wanted.replace("#", "")) return 0;
    const place = row.words.indexOf(wanted);
    if (place >= 0) return 1 + place;
    return row.words.some((word) => word.startsWith(wanted)) ? 1 + row.words.length : 2 + row.words.length;
  }

  // Returns one test of rows for the search and all filters.
  function predicate(query) {
    const checks = [];
    if (searchText(query)) checks.push(matcher(searchText(query)));
    if (query.dead === "only") checks.push((row) => row.n_active === 0);
    else if (query.dead !== "show") checks.push((row) => row.n_active !== 0);
    const dilation = asNumber(query.dilation);
    if (dilation !== null) checks.push((row) => row.main_dilation !== null && Math.abs(row.main_dilation - dilation) < 1e-3 * Math.max(5, dilation)); // values are rounded to 4 digits
    const from = asNumber(query.dmin);
    if (from !== null) checks.push((row) => row.density !== null && row.density * 100 >= from);
    const to = asNumber(query.dmax);
    if (to !== null) checks.push((row) => row.density !== null && row.density * 100 <= to);
    const selective = asNumber(query.smin);
    if (selective !== null) checks.push((row) => row.selectivity !== null && row.selectivity >= selective);
    return (row) => checks.every((check) => check(row));
  }

  const BY_NUMBER = { field: "feature", dir: "asc" };
  const BY_MATCH = { field: "match", dir: "asc" };
  const defaultSorting = (query) => (searchText(query) ? BY_MATCH : BY_NUMBER);

  function sorting(query) {
    const [field, dir] = (query.sort || "").split(":");
    return field ? { field, dir: dir === "asc" ? "asc" : "desc" } : defaultSorting(query);
  }

  const same = (one, other) => one.field === other.field && one.dir === other.dir;
  const sortText = (order, query) => (same(order, defaultSorting(query)) ? null : order.field + ":" + order.dir);

  MT.filters = { searchText, predicate, rank, sorting, defaultSorting, same, sortText };
})();
