// Sorts tables by a click on a heading, and plays a run's target by its button.

"use strict";

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

for (const button of document.querySelectorAll("[data-hear]")) {
  const player = Player.all.find((each) => each.playable.some((lane) => lane.run === button.dataset.hear));
  const lane = player?.playable.find((each) => each.run === button.dataset.hear);
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
