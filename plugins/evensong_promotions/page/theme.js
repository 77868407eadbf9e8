// Airflow's own choice of light or dark: in its frame from the frame's owner, elsewhere from what it has stored.
(() => {
  const root = document.documentElement;
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  let owner = null;
  try { owner = window.parent !== window ? window.parent.document.documentElement : null; } catch { owner = null; }
  const apply = () => {
    let stored = null;
    try { stored = localStorage.getItem("theme"); } catch { stored = null; }
    const chosen = owner ? owner.classList.contains("dark") : stored === "dark" || (stored !== "light" && dark.matches);
    root.dataset.theme = chosen ? "dark" : "light";
    root.classList.toggle("framed", owner !== null);
  };
  apply();
  dark.addEventListener("change", apply);
  if (owner) new MutationObserver(apply).observe(owner, { attributes: true, attributeFilter: ["class"] });
})();
