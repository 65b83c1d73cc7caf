// Render the formulas that pymdownx.arithmatex leaves as \( \) and \[ \], with the KaTeX
// that lies beside this file: nothing is fetched from another host.
document.addEventListener("DOMContentLoaded", () => {
  for (const element of document.querySelectorAll(".arithmatex")) {
    const source = element.textContent.trim();
    katex.render(source.slice(2, -2), element, {
      displayMode: source.startsWith("\\["),
      throwOnError: true,
    });
  }
});
