// Which features the list shows, and in which order: plain functions of rows and of the address.
(function () {
  "use strict";

  const asNumber = (text) => (text === undefined || text === "" || Number.isNaN(Number(text)) ? null : Number(text));

  // A number finds the feature of that number, and tokens with it; words are found in the top and the promoted tokens.
  function matcher(q) {
    const wanted = q.toLowerCase().trim();
    const exact = wanted.match(/^#(\d+)$/);
    if (exact) return (row) => row.feature === Number(exact[1]);
    if (/^\d+$/.test(wanted)) return (row) => String(row.feature).startsWith(wanted) || row.text.includes(wanted);
    return (row) => row.text.includes(wanted);
  }

  // One predicate for all that the address asks.
  function predicate(query) {
    const checks = [];
    if ((query.q || "").trim()) checks.push(matcher(query.q));
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

  const FIRST_SORT = { field: "feature", dir: "asc" };

  function sorting(query) {
    const [field, dir] = (query.sort || "").split(":");
    return field ? { field, dir: dir === "asc" ? "asc" : "desc" } : FIRST_SORT;
  }

  const sortText = ({ field, dir }) => (field === "feature" && dir === "asc" ? null : field + ":" + dir);

  MT.filters = { predicate, sorting, sortText };
})();
