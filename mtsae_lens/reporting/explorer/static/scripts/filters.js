// Which features the list shows, and in which order: plain functions of rows and of the address.
(function () {
  "use strict";

  const asNumber = (text) => (text === undefined || text === "" || Number.isNaN(Number(text)) ? null : Number(text));

  const asked = (query) => (query.q || "").toLowerCase().trim();

  // A number finds the feature of that number, and tokens with it; words are found in the top and the promoted tokens.
  function matcher(wanted) {
    const exact = wanted.match(/^#(\d+)$/);
    if (exact) return (row) => row.feature === Number(exact[1]);
    if (/^\d+$/.test(wanted)) return (row) => String(row.feature).startsWith(wanted) || row.text.includes(wanted);
    return (row) => row.text.includes(wanted);
  }

  // How well a row answers, the best first: by its number or top token, by a promoted token (the likelier first), by a word's beginning, by a part.
  function rank(row, wanted) {
    if (String(row.feature) === wanted.replace("#", "")) return 0;
    const place = row.words.indexOf(wanted);
    if (place >= 0) return 1 + place;
    return row.words.some((word) => word.startsWith(wanted)) ? 1 + row.words.length : 2 + row.words.length;
  }

  // One predicate for all that the address asks.
  function predicate(query) {
    const checks = [];
    if (asked(query)) checks.push(matcher(asked(query)));
    if (query.dead === "only") checks.push((row) => row.n_active === 0);
    else if (query.dead !== "show") checks.push((row) => row.n_active !== 0);
    const dilation = asNumber(query.dilation);
    if (dilation !== null) checks.push((row) => row.main_dilation !== null && Math.abs(row.main_dilation - dilation) < 1e-3 * Math.max(5, dilation)); // rounded to 4 digits
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
  const unasked = (query) => (asked(query) ? BY_MATCH : BY_NUMBER);

  function sorting(query) {
    const [field, dir] = (query.sort || "").split(":");
    return field ? { field, dir: dir === "asc" ? "asc" : "desc" } : unasked(query);
  }

  const same = (one, other) => one.field === other.field && one.dir === other.dir;
  const sortText = (order, query) => (same(order, unasked(query)) ? null : order.field + ":" + order.dir);

  MT.filters = { asked, predicate, rank, sorting, unasked, same, sortText };
})();
