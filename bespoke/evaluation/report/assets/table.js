// Tables: groups that open into their runs, sorting, filtering, choosing columns, export as CSV, and
// the buttons that play a run.

"use strict";

for (const button of document.querySelectorAll("table.groups .open")) {
  button.addEventListener("click", () => {
    const open = button.getAttribute("aria-expanded") !== "true";
    button.setAttribute("aria-expanded", open);
    for (const row of button.closest("tbody").querySelectorAll(".member")) row.hidden = !open;
  });
}

for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0], headings = [...table.tHead.rows[0].cells];
  for (const [column, heading] of headings.entries()) {
    heading.querySelector("button")?.addEventListener("click", () => {
      const descending = heading.getAttribute("aria-sort") === "ascending" || (!heading.ariaSort && heading.hasAttribute("data-best"));
      const sign = descending ? -1 : 1;
      headings.forEach((each) => each.removeAttribute("aria-sort"));
      heading.setAttribute("aria-sort", descending ? "descending" : "ascending");
      const value = (row) => row.cells[column]?.dataset.value ?? "";
      const sorted = [...body.rows].sort((one, other) => {
        const [a, b] = [value(one), value(other)];
        if (a === "" || b === "") return (a === "") - (b === ""); // missing values come last in both orders
        return sign * (isNaN(a) || isNaN(b) ? a.localeCompare(b, "en", { numeric: true }) : a - b);
      });
      body.append(...sorted);
    });
  }
}

for (const table of document.querySelectorAll("table.runs")) {
  const section = table.closest("section"), rows = [...table.tBodies[0].rows], headings = [...table.tHead.rows[0].cells];
  const name = (heading) => heading.querySelector("button").title || heading.textContent.trim();

  const show = (column, shown) => {
    for (const row of [table.tHead.rows[0], ...rows]) row.cells[column].hidden = !shown;
  };
  for (const [column, heading] of headings.entries()) {
    if (!column) continue; // the run's name stays
    const label = document.createElement("label"), box = Object.assign(document.createElement("input"), { type: "checkbox" });
    box.checked = !heading.hasAttribute("data-folded");
    box.addEventListener("change", () => show(column, box.checked));
    label.append(box, ` ${name(heading)}`);
    section.querySelector(".choices").append(label);
    show(column, box.checked);
  }

  // A word with = is a whole setting; another one is found anywhere in a row.
  const matches = (row, word) =>
    word.includes("=") ? row.dataset.words.split(" ").includes(word) : `${row.dataset.words} ${row.textContent}`.toLowerCase().includes(word.toLowerCase());
  section.querySelector(".filter").addEventListener("input", (event) => {
    const words = event.target.value.split(/\s+/).filter(Boolean);
    for (const row of rows) {
      row.hidden = !words.every((word) => matches(row, word));
      for (const lane of document.querySelectorAll(".lane[data-run]")) if (lane.dataset.run === row.dataset.run) lane.hidden = row.hidden;
    }
    section.querySelector(".shown").textContent = words.length ? `${rows.filter((row) => !row.hidden).length} of ${rows.length} runs` : "";
  });

  // What is shown, with all decimals.
  const csv = () => {
    const columns = headings.map((heading, column) => (heading.hidden ? -1 : column)).filter((column) => column >= 0);
    const quoted = (text) => (/[",\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text);
    const lines = [...table.tBodies[0].rows].filter((row) => !row.hidden).map((row) => columns.map((column) => row.cells[column].dataset.value));
    return [columns.map((column) => name(headings[column])), ...lines].map((line) => line.map(quoted).join(",")).join("\n") + "\n";
  };
  section.querySelector(".export").addEventListener("click", () => download(`data:text/csv;charset=utf-8,${encodeURIComponent(csv())}`, "runs.csv"));
}

for (const button of document.querySelectorAll("[data-hear]")) {
  const rest = button.hasAttribute("data-rest"), wanted = (lane) => lane.run === button.dataset.hear && Boolean(lane.rest) === rest;
  const player = Player.all.find((each) => each.playable.some(wanted));
  const lane = player?.playable.find(wanted);
  if (!lane) continue;
  button.addEventListener("click", () => {
    if (player.clock.paused) {
      const playing = Player.all.find((each) => !each.clock.paused);
      if (playing) player.clock.currentTime = playing.clock.currentTime;
    }
    Player.current = player;
    player.listen(lane);
    player.clock.play();
  });
  player.section.addEventListener("listen", () => button.setAttribute("aria-pressed", player.heard.has(lane)));
  button.setAttribute("aria-pressed", player.heard.has(lane));
}
