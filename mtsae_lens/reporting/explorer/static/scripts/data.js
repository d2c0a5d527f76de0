// Data files are loaded by script tags, because a page opened from disk may not fetch: each calls mtsaeShard(kind, number, content).
(function () {
  "use strict";
  const { useEffect, useState } = htmPreact;
  const arrived = new Map();
  const loading = new Map();
  const key = (kind, number) => kind + "-" + number;

  window.mtsaeShard = (kind, number, content) => arrived.set(key(kind, number), content);

  const at = (kind, number) => arrived.get(key(kind, number));

  function load(kind, number) {
    const name = key(kind, number);
    if (!loading.has(name)) loading.set(name, new Promise((resolve, reject) => request(name, resolve, reject)));
    return loading.get(name);
  }

  function request(name, resolve, reject) {
    const script = document.createElement("script");
    script.src = "page/data/" + name + ".js";
    script.onload = () => resolve(arrived.get(name));
    script.onerror = () => {
      loading.delete(name);
      reject(new Error("page/data/" + name + ".js is missing. Keep index.html and the folder page/ together."));
    };
    document.head.append(script);
  }

  // Returns {content, error} of a shard. Both are null while it loads, and if `number` is null, which loads nothing.
  function useShard(kind, number) {
    const [state, setState] = useState({});
    useEffect(() => {
      let isMounted = true;
      const show = (result) => isMounted && setState({ name: key(kind, number), ...result });
      if (number !== null && !arrived.has(key(kind, number))) {
        load(kind, number).then((content) => show({ content }), (error) => show({ error: error.message }));
      }
      return () => (isMounted = false);
    }, [kind, number]);
    const content = at(kind, number) || null;
    return { content, error: content || state.name !== key(kind, number) ? null : state.error };
  }

  // The columns of the list as rows, made once. `words` are the searchable tokens.
  let rows = null;
  function features() {
    if (rows) return rows;
    const columns = at("list", 0);
    const names = Object.keys(columns);
    rows = columns.top_token.map((_, feature) => {
      const row = { feature };
      names.forEach((column) => (row[column] = columns[column][feature]));
      row.words = [row.top_token || "", ...(row.promoted_tokens || [])].map((text) => text.toLowerCase());
      row.text = row.words.join("\n");
      row.words = row.words.map((text) => text.trim());
      return row;
    });
    return rows;
  }

  MT.data = { at, useShard, features, explore: () => at("explore", 0) };
})();
