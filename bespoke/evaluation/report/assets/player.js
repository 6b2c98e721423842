// A player of many synchronized tracks. wavesurfer.js draws each track and handles its cursor,
// seeking and regions. All of its instances share one "media element", the Clock below, which plays
// every track from one Web Audio context, in step to the sample.

"use strict";

/** What wavesurfer takes for its media element: the position of all tracks together, which are always played, though not all heard. */
class Clock extends EventTarget {
  readyState = 4; // HAVE_ENOUGH_DATA: seeking is always possible
  src = "";
  volume = 1;
  muted = false;
  playbackRate = 1;
  seeking = false;
  paused = true;
  ended = false;
  loop = null; // [start, end] in seconds

  constructor(duration) {
    super();
    this.duration = duration;
    this.context = new AudioContext({ latencyHint: "interactive" });
    this.output = this.context.createGain();
    this.output.connect(this.context.destination);
    this.tracks = [];
    this.position = 0; // in seconds, where playback stopped or started
    this.began = 0; // the context's time at which it started
  }

  /** Adds a track that is not heard yet; one that is added while others play joins them. */
  add(buffer) {
    const track = { buffer, gain: this.context.createGain(), source: null };
    track.gain.gain.value = 0;
    track.gain.connect(this.output);
    this.tracks.push(track);
    if (!this.paused) this.#start(track, this.context.currentTime + 0.05);
    return track;
  }

  #start(track, when) {
    const source = new AudioBufferSourceNode(this.context, { buffer: track.buffer });
    if (this.loop) Object.assign(source, { loop: true, loopStart: this.loop[0], loopEnd: Math.min(this.loop[1], track.buffer.duration) });
    source.connect(track.gain);
    source.start(when, this.#at(when));
    track.source = source;
  }

  #stop() {
    for (const track of this.tracks) {
      track.source?.stop();
      track.source?.disconnect();
      track.source = null;
    }
  }

  /** The position at a time of the context. */
  #at(time) {
    let position = this.position + Math.max(0, time - this.began);
    if (this.loop) {
      const [start, end] = this.loop;
      if (position >= end) position = start + ((position - start) % (end - start));
    }
    return Math.min(position, this.duration);
  }

  get currentTime() {
    return this.paused ? this.position : this.#at(this.context.currentTime);
  }

  set currentTime(seconds) {
    const playing = !this.paused;
    if (playing) this.#stop();
    this.position = Math.min(Math.max(seconds, 0), this.duration);
    if (playing) this.#play();
    for (const name of ["seeking", "timeupdate", "seeked"]) this.dispatchEvent(new Event(name));
  }

  setLoop(loop) {
    const position = this.currentTime;
    this.loop = loop;
    this.currentTime = position;
  }

  async play() {
    if (!this.paused) return;
    const silent = setTimeout(() => this.dispatchEvent(new Event("silent")), 3000);
    await this.context.resume();
    clearTimeout(silent);
    if (this.position >= this.duration - 0.01) this.position = 0;
    this.#play();
    this.paused = this.ended = false;
    this.dispatchEvent(new Event("play"));
    this.#tick();
  }

  #play() {
    if (this.loop && (this.position < this.loop[0] || this.position >= this.loop[1])) this.position = this.loop[0];
    this.began = this.context.currentTime + 0.03; // a common start, late enough for all tracks
    for (const track of this.tracks) this.#start(track, this.began);
  }

  pause() {
    if (this.paused) return;
    this.position = this.currentTime;
    this.paused = true;
    this.#stop();
    this.dispatchEvent(new Event("pause"));
    this.dispatchEvent(new Event("timeupdate"));
  }

  #tick() {
    if (this.paused) return;
    if (!this.loop && this.currentTime >= this.duration) {
      this.pause();
      this.position = 0;
      this.ended = true;
      this.dispatchEvent(new Event("ended"));
    }
    this.dispatchEvent(new Event("timeupdate"));
    if (document.hidden) setTimeout(() => this.#tick(), 200);
    else requestAnimationFrame(() => this.#tick());
  }

  // Interface of a media element that wavesurfer needs.
  canPlayType() { return "maybe"; }
  load() {}
  remove() {}
  removeAttribute() {}
}

const LANE_STYLE = `
  .picture { position: relative; height: var(--picture-height); overflow: hidden; border-radius: 0 0 4px 4px; background: #000; }
  .picture img { display: block; width: 100%; height: 100%; image-rendering: auto; user-select: none; -webkit-user-drag: none; }
  .picture svg { position: absolute; inset: 0; width: 100%; height: 100%; pointer-events: none; display: var(--score-display); }
  .picture path { fill: rgb(80 230 255 / .3); stroke: rgb(120 240 255 / .95); stroke-width: 1px; vector-effect: non-scaling-stroke; }
  .picture .hz { position: absolute; left: 3px; translate: 0 50%; font: 10px/1 system-ui, sans-serif; color: #fffc; text-shadow: 0 0 3px #000; }
`;

/** A player's section of the page: its lanes, its controls and its keys. */
class Player {
  static all = [];
  static current = null; // receives key presses: the player used last, at first the first

  constructor(section) {
    this.section = section;
    this.data = JSON.parse(section.querySelector(".player-data").textContent);
    this.clock = new Clock(this.data.duration);
    this.lanes = [...section.querySelectorAll(".lane")].map((element, index) => this.#lane(element, this.data.lanes[index]));
    this.heard = new Set();
    Player.all.push(this);
    Player.current ??= this;
    section.addEventListener("pointerdown", () => (Player.current = this));
    this.#controls();
    const mix = this.playable.filter((lane) => lane.together);
    this.listen(mix[0] ?? this.playable[0]);
    for (const lane of mix.slice(1)) this.listen(lane, true);
    this.ready = this.#decode();
  }

  get playable() {
    return this.lanes.filter((lane) => lane.audio);
  }

  find(selector) {
    return this.section.querySelector(selector);
  }

  #lane(element, data) {
    const lane = { ...data, element, volume: 1, track: null };
    lane.surfer = WaveSurfer.create({
      container: element.querySelector(".wave"),
      media: this.clock,
      peaks: [data.outline ?? [0]],
      duration: this.data.duration,
      height: data.outline ? this.data.wave_height : 0,
      waveColor: "#8a93a6",
      progressColor: "#4d7cfe",
      cursorColor: "#ff5d5d",
      cursorWidth: 2,
      maxPeak: this.data.highest,
      barWidth: data.outline ? undefined : 1,
      hideScrollbar: true,
      autoScroll: false,
    });
    const wrapper = lane.surfer.getWrapper();
    const picture = element.querySelector(".picture");
    if (picture) {
      const style = document.createElement("style");
      style.textContent = LANE_STYLE;
      wrapper.getRootNode().append(style);
      wrapper.append(picture);
      const score = data.score ?? this.data.score;
      if (score) {
        picture.insertAdjacentHTML(
          "beforeend",
          `<svg viewBox="0 0 ${this.data.duration} 1" preserveAspectRatio="none" aria-hidden="true"><path d="${score}"/></svg>`,
        );
      }
    }
    lane.regions = lane.surfer.registerPlugin(WaveSurfer.Regions.create());
    lane.surfer.on("ready", () => lane.regions.enableDragSelection({ color: "rgb(255 190 60 / .25)" }));
    for (const name of ["region-created", "region-updated"]) {
      lane.regions.on(name, (region) => this.drawing || this.setLoop([region.start, region.end]));
    }
    return lane;
  }

  /** Decodes one track after the other, the first ones first; what is decoded can be heard. */
  async #decode() {
    const status = this.find(".status");
    const first = this.playable.filter((lane) => !lane.rest); // a residual is decoded when it is heard
    for (const [index, lane] of first.entries()) {
      status.textContent = `Loading track ${index + 1} of ${first.length} …`;
      await this.#decodeLane(lane);
      this.section.dataset.interactive ??= Math.round(performance.now()); // in ms since the page began to load
    }
    status.textContent = "";
    this.section.dataset.ready = Math.round(performance.now());
  }

  async #decodeLane(lane) {
    const encoded = await (await fetch(lane.audio)).arrayBuffer();
    lane.track = this.clock.add(await this.clock.context.decodeAudioData(encoded));
    this.#setGains();
  }

  /** Hears one track only, or adds it to those that are heard, or takes it away. */
  listen(lane, add = false) {
    if (!lane) return;
    if (!add) this.heard = new Set([lane]);
    else if (!this.heard.delete(lane)) this.heard.add(lane);
    for (const each of this.playable) {
      const on = this.heard.has(each);
      each.element.classList.toggle("heard", on);
      each.element.querySelector(".solo").setAttribute("aria-pressed", on && this.heard.size === 1);
      each.element.querySelector(".add").setAttribute("aria-pressed", on);
    }
    if (lane.rest && this.heard.has(lane)) lane.decoding ??= this.#decodeLane(lane);
    this.section.dispatchEvent(new Event("listen"));
    this.#setGains();
  }

  #setGains() {
    const now = this.clock.context.currentTime;
    for (const lane of this.playable) {
      lane.track?.gain.gain.setTargetAtTime(this.heard.has(lane) ? lane.volume : 0, now, 0.005);
    }
  }

  setLoop(loop) {
    if (loop && loop[1] - loop[0] < 0.05) loop = null;
    this.clock.setLoop(loop);
    this.drawing = true; // the changes below do not come from the user
    for (const lane of this.lanes) {
      lane.regions.clearRegions();
      if (loop) lane.regions.addRegion({ start: loop[0], end: loop[1], color: "rgb(255 190 60 / .25)" });
    }
    this.drawing = false;
    this.find(".loop-text").textContent = loop ? `${format(loop[0])} – ${format(loop[1])}` : "drag over a lane to loop a part";
    this.find(".loop-clear").disabled = !loop;
  }

  toggle() {
    if (this.clock.paused) this.clock.play();
    else this.clock.pause();
  }

  /** The loop from or to the cursor; the other end is where it was, or the track's. */
  loopFrom() {
    const now = this.clock.currentTime, end = this.clock.loop?.[1] ?? this.clock.duration;
    this.setLoop([now, end > now ? end : this.clock.duration]);
  }

  loopTo() {
    const now = this.clock.currentTime, start = this.clock.loop?.[0] ?? 0;
    this.setLoop([start < now ? start : 0, now]);
  }

  #controls() {
    const { clock } = this;
    const seek = this.find(".seek"), play = this.find(".play"), time = this.find(".time"), strip = this.find(".lanes");
    const show = () => {
      time.textContent = `${format(clock.currentTime)} / ${format(clock.duration)}`;
      if (document.activeElement !== seek || !clock.paused) seek.value = clock.currentTime;
      seek.setAttribute("aria-valuetext", `${clock.currentTime.toFixed(1)} of ${clock.duration.toFixed(1)} seconds`);
    };
    const showPlaying = () => {
      play.setAttribute("aria-label", clock.paused ? "Play" : "Pause");
      play.classList.toggle("playing", !clock.paused);
    };
    clock.addEventListener("timeupdate", () => {
      show();
      if (!clock.paused) follow(strip, clock.currentTime / clock.duration);
    });
    for (const name of ["play", "pause", "ended"]) clock.addEventListener(name, showPlaying);
    clock.addEventListener("silent", () => (this.find(".status").textContent = "The browser plays no sound: is there an audio device?"));
    clock.addEventListener("play", () => Player.all.forEach((player) => player !== this && player.clock.pause()));
    seek.max = clock.duration;
    seek.addEventListener("input", () => (clock.currentTime = Number(seek.value)));
    play.addEventListener("click", () => this.toggle());
    this.find(".volume").addEventListener("input", (event) => (clock.output.gain.value = event.target.value ** 2));
    this.find(".zoom").addEventListener("input", (event) => strip.style.setProperty("--zoom", event.target.value));
    this.find(".loop-from").addEventListener("click", () => this.loopFrom());
    this.find(".loop-to").addEventListener("click", () => this.loopTo());
    this.find(".loop-clear").addEventListener("click", () => this.setLoop(null));
    for (const box of this.section.querySelectorAll("[data-toggle]")) {
      box.addEventListener("change", () => this.section.classList.toggle(box.dataset.toggle, !box.checked));
    }
    for (const lane of this.playable) {
      const solo = lane.element.querySelector(".solo"), add = lane.element.querySelector(".add");
      solo.addEventListener("click", (event) => this.listen(lane, event.shiftKey));
      add.addEventListener("click", () => this.listen(lane, true));
      lane.element.querySelector(".track-volume").addEventListener("input", (event) => {
        lane.volume = event.target.value ** 2; // closer to perceived loudness than a linear scale
        this.#setGains();
      });
      lane.element.querySelector(".download").addEventListener("click", () => download(lane.audio, `${lane.file}.opus`));
    }
    // A button that was clicked, not focused by keyboard, must not take the space bar.
    this.section.addEventListener("click", (event) => event.detail && event.target.closest("button")?.blur());
    show();
    showPlaying();
    this.setLoop(null);
  }

  /** From a run's target to its residual, and back. */
  #switchRest() {
    const lane = this.playable.find((each) => this.heard.has(each) && each.run);
    this.listen(lane && this.playable.find((each) => each.run === lane.run && each !== lane));
  }

  key(event) {
    const lanes = this.playable.filter((lane) => !lane.element.hidden && lane.element.offsetParent);
    const step = event.shiftKey ? 5 : 1, heard = lanes.findIndex((lane) => this.heard.has(lane));
    const number = /^Digit([1-9])$/.exec(event.code)?.[1];
    if (number) this.listen(this.playable.filter((lane) => !lane.rest)[number - 1], event.shiftKey);
    else if (event.code === "KeyR") this.#switchRest();
    else if (event.code === "Space" || event.code === "KeyK") this.toggle();
    else if (event.code === "ArrowLeft") this.clock.currentTime -= step;
    else if (event.code === "ArrowRight") this.clock.currentTime += step;
    else if (event.code === "ArrowUp") this.listen(lanes.at(heard < 0 ? 0 : heard - 1));
    else if (event.code === "ArrowDown") this.listen(lanes[(heard + 1) % lanes.length]);
    else if (event.code === "Home") this.clock.currentTime = 0;
    else if (event.key === "[") this.loopFrom();
    else if (event.key === "]") this.loopTo();
    else if (event.code === "Escape") this.setLoop(null);
    else return;
    event.preventDefault();
  }
}

function format(seconds) {
  const minutes = Math.floor(seconds / 60);
  return `${minutes}:${(seconds - 60 * minutes).toFixed(1).padStart(4, "0")}`;
}

/** Scrolls a zoomed strip so that the cursor, at a share of its length, is in sight. */
function follow(strip, share) {
  if (strip.scrollWidth <= strip.clientWidth) return;
  const head = strip.querySelector(".head").offsetWidth * (matchMedia("(max-width: 700px)").matches ? 0 : 1);
  const cursor = share * (strip.scrollWidth - head), width = strip.clientWidth - head;
  if (cursor < strip.scrollLeft || cursor > strip.scrollLeft + width) strip.scrollLeft = Math.max(0, cursor - 0.1 * width);
}

function download(address, name) {
  Object.assign(document.createElement("a"), { href: address, download: name }).click();
}

document.addEventListener("keydown", (event) => {
  const on = event.target;
  if (event.ctrlKey || event.metaKey || event.altKey || on.matches("input[type=text], input[type=search], select, textarea")) return;
  if (on.matches("input[type=range]") && /^(Arrow|Home|End|Page)/.test(event.code)) return;
  if (on.matches("button, a, summary, input[type=checkbox]") && ["Space", "Enter"].includes(event.code)) return;
  Player.current?.key(event);
});

for (const section of document.querySelectorAll(".player")) new Player(section);
