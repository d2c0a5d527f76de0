// The tooltip of the token that is under the pointer, has the focus, or was tapped.
(function () {
  "use strict";
  const { render } = htmPreact;
  let box = null;
  let owner = null;

  function element() {
    if (!box) {
      box = document.createElement("div");
      box.id = "tip";
      box.setAttribute("role", "tooltip");
      document.body.append(box);
      window.addEventListener("scroll", follow, { passive: true });
      window.addEventListener("hashchange", hide);
    }
    return box;
  }

  function show(target, content) {
    const tip = element();
    if (owner && owner !== target) owner.removeAttribute("aria-describedby");
    owner = target;
    target.setAttribute("aria-describedby", "tip");
    render(content, tip);
    tip.classList.add("shown");
    place(tip, target);
  }

  function place(tip, target) {
    const spot = target.getBoundingClientRect();
    const { width, height } = tip.getBoundingClientRect();
    const left = Math.min(Math.max(8, spot.left), document.body.getBoundingClientRect().right - width - 8);
    const below = spot.bottom + 8;
    const top = below + height < window.innerHeight ? below : Math.max(8, spot.top - height - 8);
    tip.style.transform = "translate(" + Math.round(left) + "px," + Math.round(top) + "px)";
  }

  // A token that has the focus, or is still under the pointer, keeps its tooltip while the page scrolls.
  function follow() {
    if (owner && owner.matches(":hover, :focus")) place(box, owner);
    else hide();
  }

  function hide() {
    if (!box) return;
    box.classList.remove("shown");
    if (owner) owner.removeAttribute("aria-describedby");
    owner = null;
  }

  MT.tip = { show, hide };
})();
