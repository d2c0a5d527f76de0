// The page's state is its address: #/list?q=king&sort=density:desc, #/feature/885?example=3, #/text/2?token=17.
(function () {
  "use strict";
  const { useEffect, useState } = htmPreact;
  const VIEWS = ["list", "feature", "text"];

  function parse(hash) {
    const [path, query] = hash.replace(/^#\/?/, "").split("?");
    const [view, id] = path.split("/");
    return {
      view: VIEWS.includes(view) ? view : "list",
      id: /^\d+$/.test(id || "") ? Number(id) : 0,
      query: Object.fromEntries(new URLSearchParams(query || "")),
    };
  }

  function address(view, id, query = {}) {
    const kept = Object.entries(query).filter(([, value]) => value !== null && value !== undefined && value !== "");
    const search = new URLSearchParams(kept).toString();
    return "#/" + view + (view === "list" ? "" : "/" + id) + (search ? "?" + search : "");
  }

  // Reads a number of the query as an index below `n`; null for anything else, because readers may edit addresses.
  const place = (text, n) => (/^\d+$/.test(text || "") && Number(text) < n ? Number(text) : null);

  const now = () => parse(location.hash);
  const go = (view, id, query) => (location.hash = address(view, id, query));

  // Changes part of the query without adding to the browser's history.
  function amend(changes) {
    const { view, id, query } = now();
    location.replace(address(view, id, { ...query, ...changes }));
  }

  function useRoute() {
    const [route, setRoute] = useState(now);
    useEffect(() => {
      const listen = () => setRoute(now());
      window.addEventListener("hashchange", listen);
      return () => window.removeEventListener("hashchange", listen);
    }, []);
    return route;
  }

  MT.route = { parse, address, place, now, go, amend, useRoute };
})();
