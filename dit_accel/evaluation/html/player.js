// Players: three canvases a group, one clock; every canvas draws the same frame of its own sheet.
"use strict";
(() => {
  const box = document.getElementById("players");
  if (!box) return;
  document.documentElement.classList.add("js");
  const sheets = JSON.parse(document.getElementById("sheets").textContent);
  const pictures = new Map();
  const playing = new Set();
  let last = 0;

  const picture = (name) => {
    if (!pictures.has(name)) {
      const image = new Image();
      image.src = sheets[name];
      pictures.set(name, image.decode().then(() => image));
    }
    return pictures.get(name);
  };

  class Player {
    constructor(figure) {
      this.figure = figure;
      Object.assign(this, JSON.parse(figure.dataset.player));
      this.ranks = JSON.parse(figure.dataset.ranks);
      this.canvases = [...figure.querySelectorAll("canvas")];
      this.button = figure.querySelector(".play");
      this.scrub = figure.querySelector(".scrub");
      this.counter = figure.querySelector(".counter");
      this.speed = 1;
      this.place = this.opensAt;
      this.images = null;
      this.loading = null;
      for (const canvas of this.canvases) canvas.classList.toggle("small", this.width <= 256);
      this.button.addEventListener("click", () => this.play(!playing.has(this)));
      this.scrub.addEventListener("input", () => { this.play(false); this.seek(+this.scrub.value); });
      figure.querySelector(".speed select").addEventListener("change", (e) => { this.speed = +e.target.value; });
      figure.addEventListener("keydown", (event) => this.key(event));
      this.showPlace();
    }
    load() {
      this.loading ??= Promise.all(this.sheets.map(picture)).then((images) => {
        this.images = images;
        this.draw();
      });
      return this.loading;
    }
    seek(frame) {
      this.place = Math.min(this.frames - 1, Math.max(0, frame));
      this.draw();
    }
    draw() {
      this.showPlace();
      if (!this.images) return;
      const frame = Math.floor(this.place);
      const x = (frame % this.columns) * this.width;
      const y = Math.floor(frame / this.columns) * this.height;
      this.canvases.forEach((canvas, index) => {
        canvas.getContext("2d").drawImage(this.images[index], x, y, this.width, this.height, 0, 0, this.width, this.height);
        canvas.dataset.frame = frame;
      });
    }
    showPlace() {
      const frame = Math.floor(this.place);
      this.scrub.value = frame;
      this.scrub.setAttribute("aria-valuetext", `frame ${frame + 1} of ${this.frames}`);
      this.counter.textContent = `${frame + 1} / ${this.frames}`;
    }
    async play(on) {
      if (on) {
        await this.load();
        playing.add(this);
        if (playing.size === 1) { last = performance.now(); requestAnimationFrame(tick); }
      } else playing.delete(this);
      this.button.textContent = on ? "Pause" : "Play";
      this.button.setAttribute("aria-pressed", String(on));
      updateAllButton();
    }
    advance(seconds) {
      const before = Math.floor(this.place);
      this.place = (this.place + seconds * this.fps * this.speed) % this.frames;
      if (Math.floor(this.place) !== before) this.draw();
    }
    key(event) {
      const go = { ArrowLeft: -1, ArrowRight: 1, Home: -this.frames, End: this.frames }[event.key];
      if (event.target.matches("select") || event.altKey || event.ctrlKey || event.metaKey) return;
      if (event.key === " " && event.target !== this.button) this.play(!playing.has(this));
      else if (go) { this.play(false); this.seek(Math.floor(this.place) + go); }
      else return;
      event.preventDefault();
    }
  }

  const tick = (now) => {
    const seconds = Math.min(0.25, (now - last) / 1000);
    last = now;
    for (const player of playing) player.advance(seconds);
    if (playing.size) requestAnimationFrame(tick);
  };

  const players = [...box.querySelectorAll(".player")].map((figure) => new Player(figure));
  const list = document.getElementById("clip-list");
  const all = document.getElementById("play-all");
  const shown = () => players.filter((player) => !player.figure.hidden);
  const updateAllButton = () => {
    const here = shown();
    const on = here.length > 0 && here.every((player) => playing.has(player));
    all.textContent = on ? "Pause all" : "Play all";
    all.setAttribute("aria-pressed", String(on));
  };

  const near = "IntersectionObserver" in window
    ? new IntersectionObserver((entries) => {
        for (const entry of entries) {
          if (entry.isIntersecting) players.find((p) => p.figure === entry.target).load();
        }
      }, { rootMargin: "800px" })
    : null;

  const choose = () => {
    const name = list.value;
    const wanted = players.filter((p) => name in p.ranks).sort((a, b) => a.ranks[name] - b.ranks[name]);
    for (const player of players) {
      player.figure.hidden = !wanted.includes(player);
      if (player.figure.hidden && playing.has(player)) player.play(false);
    }
    for (const player of wanted) {
      const rank = player.ranks[name];
      player.figure.querySelector(".rank").textContent =
        rank === 5 ? "the median" : rank === 0 ? "the worst" : `${["", "second", "third", "fourth", "fifth"][rank]} worst`;
      box.append(player.figure);
      if (near) near.observe(player.figure); else player.load();
    }
    updateAllButton();
  };

  list.addEventListener("change", choose);
  all.addEventListener("click", () => {
    const here = shown();
    const on = !here.every((player) => playing.has(player));
    for (const player of here) player.play(on);
  });
  choose();
})();
