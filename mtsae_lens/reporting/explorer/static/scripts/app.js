// The frame of the page: navigation, theme, help and keyboard.
(function () {
  "use strict";
  const { html, render, useEffect, useRef } = htmPreact;
  const { data, format, route, theme } = MT;

  const KEYS = [
    ["/", "search"],
    ["j, k or \u2193, \u2191", "next and previous row of the list"],
    ["j, k or \u2192, \u2190", "next and previous feature or text"],
    ["Enter", "open the selected row, or the first row"],
    ["Esc", "leave the search field, then return to the list"],
    ["t", "switch between light and dark"],
    ["?", "show this help"],
  ];

  function Help() {
    const dialog = useRef(null);
    MT.help = (part = "help-title") => {
      if (!dialog.current.open) dialog.current.showModal();
      document.getElementById(part).scrollIntoView({ block: "start" });
    };
    return html`<dialog ref=${dialog} aria-labelledby="help-title" onClick=${(event) => event.target === dialog.current && dialog.current.close()}>
      <form method="dialog"><h2 id="help-title">Keys</h2>
        <dl>${KEYS.map(([keys, what]) => html`<div><dt><kbd>${keys}</kbd></dt><dd>${what}</dd></div>`)}</dl>
        <p class="meaning">In a text, the arrow keys move from token to token. Point at a token, focus it or tap it to see its values.</p>
        <h2 id="help-meanings">What the numbers mean</h2>
        <dl class="meanings">${MT.glossary.map(([name, what]) => html`<div><dt>${name}</dt><dd>${what}</dd></div>`)}</dl>
        <button class="button" autofocus>Close</button></form>
    </dialog>`;
  }

  const isInField = (target) => target.closest("input, select, textarea, dialog");

  function step(by) {
    const { view, id, query } = route.now();
    if (view === "list") return MT.table && MT.table.move(by);
    const n = view === "feature" ? data.features().length : data.explore().texts.length;
    if (id + by < 0 || id + by >= n) return;
    route.go(view, id + by, view === "feature" ? { why: query.why, lines: query.lines } : { feature: query.feature, color: query.color });
  }

  function search() {
    if (route.now().view !== "list") location.hash = listAddress;
    setTimeout(() => document.getElementById("search").focus(), 0);
  }

  function escape(target) {
    if (target.id === "search") {
      if (target.value) route.amend({ q: null });
      target.blur();
    } else if (route.now().view !== "list") location.hash = listAddress;
  }

  function press(event) {
    if (event.ctrlKey || event.metaKey || event.altKey || event.defaultPrevented) return;
    const target = event.target;
    const list = route.now().view === "list";
    if (target.id === "search" && ["ArrowDown", "ArrowUp", "Enter"].includes(event.key)) {
      if (event.key === "Enter") MT.table.open();
      else MT.table.move(event.key === "ArrowDown" ? 1 : -1);
    } else if (event.key === "Escape" && !target.closest("dialog")) escape(target);
    else if (isInField(target)) return;
    else if (event.key === "/") search();
    else if (event.key === "?") MT.help();
    else if (event.key === "t") theme.toggle();
    else if (event.key === "j" || event.key === (list ? "ArrowDown" : "ArrowRight")) step(1);
    else if (event.key === "k" || event.key === (list ? "ArrowUp" : "ArrowLeft")) step(-1);
    else if (event.key === "Enter" && list && !target.closest("a, button, [role=columnheader]")) MT.table.open();
    else return;
    event.preventDefault();
  }

  let listAddress = "#/list"; // the list as it was last shown

  function Frame({ explore, view }) {
    const current = (name) => (view === name ? "page" : null);
    return html`<header class="frame"><a class="name" href="#/list">${explore.sae}</a>
      <nav aria-label="Views"><a href=${listAddress} aria-current=${current("list") || current("feature")}>Features</a>
        <a href="#/text/0" aria-current=${current("text")}>Text</a></nav>
      <span class="hook">${explore.architecture}, ${explore.model}, ${explore.hook_name}</span>
      <span class="tools"><button class="button" onClick=${theme.toggle} aria-label="Light or dark" title="Light or dark (t)">\u25d0</button>
        <button class="button" onClick=${() => MT.help()} aria-label="Help: keys and meanings" title="Keys, and what the numbers mean (?)">?</button></span></header>`;
  }

  function Provenance({ explore }) {
    const corpora = explore.corpora.map((corpus) => corpus.name + " (" + format.count(corpus.n_tokens) + ")").join(", ");
    const { command, seed, versions = {} } = explore.provenance || {};
    return html`<footer><details><summary>How this was made</summary>
      <p>${format.count(explore.n_tokens)} tokens: ${corpora}. Contexts of ${explore.context_size} tokens.</p>
      ${command && html`<p><code>${command}</code></p>`}
      <p>Seed ${format.count(seed)}. ${Object.entries(versions).map(([name, version]) => name + " " + version).join(", ")}</p></details></footer>`;
  }

  function App() {
    const explore = data.explore();
    const { view, id, query } = route.useRoute();
    if (view === "list") listAddress = route.address("list", 0, query);
    useEffect(() => {
      document.title = (view === "feature" ? "Feature " + id : view === "text" ? "Text " + id : "Features") + " \u2013 " + explore.sae;
      if (view !== "list" && !query.example) window.scrollTo(0, 0);
    }, [view, id]);
    useEffect(() => {
      window.addEventListener("keydown", press);
      return () => window.removeEventListener("keydown", press);
    }, []);
    return html`<${Frame} explore=${explore} view=${view} />
      <main class=${view}>
        <${MT.List} query=${view === "list" ? query : route.parse(listAddress).query} hidden=${view !== "list"} />
        ${view === "feature" && html`<${MT.Feature} id=${id} query=${query} />`}
        ${view === "text" && html`<${MT.Text} id=${id} query=${query} />`}
      </main>
      ${view !== "list" && html`<${Provenance} explore=${explore} />`}<${Help} />`;
  }

  render(html`<${App} />`, document.getElementById("app"));
})();
