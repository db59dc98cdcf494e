// What only the browser can do: the link's query, the opened file, copying, the address bar, live regions.
(() => {
  if (window.gmQuery !== undefined) return;
  window.gmQuery = window.location.search;
  const MAX_BYTES = 2 ** 20;

  const setText = (element, text) => {
    const setter = Object.getOwnPropertyDescriptor(Object.getPrototypeOf(element), "value").set;
    setter.call(element, text);
    element.dispatchEvent(new Event("input", { bubbles: true }));
  };

  const openFile = async (input) => {
    const file = input.files[0];
    const problem = document.getElementById("gm-file-problem");
    if (!file) return;
    problem.textContent = file.size > MAX_BYTES ? "gpumem: config.json is larger than 1 MiB" : "";
    if (file.size <= MAX_BYTES) {
      setText(document.querySelector("#f-config textarea"), await file.text());
    }
    input.value = "";
  };

  const copy = async (button) => {
    const area = document.getElementById(button.dataset.copy);
    area.select();
    // Pages over plain HTTP have no clipboard object.
    if (navigator.clipboard) await navigator.clipboard.writeText(area.value);
    else document.execCommand("copy");
    const words = button.firstChild;
    words.textContent = "Copied";
    setTimeout(() => { words.textContent = "Copy"; }, 1500);
  };

  // The answer brings its link as a query; the address bar and the field show it in full.
  let shown;
  const showLink = () => {
    const area = document.getElementById("gm-link");
    if (!area || (area.defaultValue === shown && !area.value.startsWith("?"))) return;
    // The element's text is what the server sent, whatever its value was made to be.
    shown = area.defaultValue;
    const { origin, pathname, search } = window.location;
    area.value = origin + pathname + (shown === "?" ? "" : shown);
    const query = new URLSearchParams(shown);
    new URLSearchParams(search).forEach((value, name) => {
      if (name.startsWith("__")) query.append(name, value); // Gradio's own, as __theme
    });
    const own = query.toString();
    window.history.replaceState(window.history.state, "", pathname + (own ? "?" + own : ""));
  };

  const prepare = () => {
    const summary = document.getElementById("gm-summary");
    if (summary && !summary.hasAttribute("aria-live")) {
      summary.setAttribute("role", "status");
      summary.setAttribute("aria-live", "polite");
    }
    // Gradio's groups of radio buttons have a heading, but no name, and arrow keys do not move
    // within them, for each button has a name of its own.
    document.querySelectorAll("#gm-form fieldset").forEach((group) => {
      const heading = group.querySelector("[data-testid=block-info]");
      if (heading && !group.ariaLabel) group.ariaLabel = heading.textContent.trim();
      group.querySelectorAll("input[type=radio]").forEach((button) => {
        if (button.name !== group.id) button.name = group.id;
      });
    });
    showLink();
  };

  document.documentElement.lang = "en";
  document.addEventListener("change", (event) => {
    if (event.target.id === "gm-file") openFile(event.target);
  });
  document.addEventListener("click", (event) => {
    const button = event.target.closest("[data-copy]");
    if (button) copy(button);
  });
  new MutationObserver(prepare).observe(document.documentElement, {
    childList: true, subtree: true, attributes: true, attributeFilter: ["name"],
  });
})();
