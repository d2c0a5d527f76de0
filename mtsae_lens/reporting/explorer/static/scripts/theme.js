// Light or dark: the system's choice until the reader makes one. This runs before anything is drawn.
(function () {
  "use strict";
  const KEY = "mtsae-theme";
  const system = window.matchMedia("(prefers-color-scheme: dark)");
  const listeners = new Set();

  function stored() {
    try {
      return localStorage.getItem(KEY);
    } catch (error) {
      return null; // some browsers store nothing for pages from disk
    }
  }

  const theme = {
    current: "light",
    set(name) {
      theme.current = name;
      document.documentElement.dataset.theme = name;
      listeners.forEach((listen) => listen(name));
    },
    toggle() {
      theme.set(theme.current === "dark" ? "light" : "dark");
      try {
        localStorage.setItem(KEY, theme.current);
      } catch (error) {
        // the choice is kept until the page is closed
      }
    },
    listen(listener) {
      listeners.add(listener);
      return () => listeners.delete(listener);
    },
    color(name) {
      return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
    },
  };

  theme.set(stored() || (system.matches ? "dark" : "light"));
  system.addEventListener("change", (event) => stored() || theme.set(event.matches ? "dark" : "light"));
  window.MT = { theme };
})();
