// Episodes of a MiniWoB page: one call of agentgym.reset or agentgym.step is one start or one step.

let begun = false;
const pictures = [];
const said = () => { const found = core.getUtterance(); return typeof found === "string" ? found : found.utterance; };
const state = (problem) => JSON.stringify({
  elements: look(), goal: said(), done: WOB_DONE_GLOBAL, raw: WOB_RAW_REWARD_GLOBAL, timed: WOB_REWARD_GLOBAL, problem,
});
window.agentgym = {
  /** Load these pictures and keep them, so that they are there as soon as the page shows them. */
  keep: (addresses) => Promise.all(addresses.map((address) => {
    const picture = new Image();
    picture.src = address;
    pictures.push(picture);
    return picture.decode().catch(() => null);
  })).then(() => pictures.length),
  reset(seed, mode, timed, points) {
    pointing = points;
    if (pointer.target && pointer.target.isConnected) {
      for (const left of chain(pointer.target)) for (const kind of ["mouseout", "mouseleave"]) mouse(kind, left, {});
    }
    timers.clear();
    now = 0;
    if (!begun) {
      begun = true;
      core.startEpisode = () => {};  // the cover with START on it stays away, also when an episode is over
      if (window.jQuery) jQuery.fx.off = true;
      const still = document.createElement("style");  // nothing moves or blinks by itself
      still.textContent = "* { caret-color: transparent !important; transition: none !important; animation: none !important; }";
      document.head.append(still);
      core.LIMIT = core.EPISODE_MAX_TIME;
    }
    if (document.activeElement) document.activeElement.blur();
    core.setDataMode(mode);
    core.EPISODE_MAX_TIME = timed ? core.LIMIT : 1e12;
    Math.seedrandom(seed);
    core.startEpisodeReal();
    [numbers, byNumber, clipboard, opened] = [new WeakMap(), new Map(), "", null];
    pointer = { x: 0, y: 0, target: null };
    scrollTo(0, 0);
    pass(FRAME_MS);
    return state("");
  },
  step(command, ms) {
    const problem = WOB_DONE_GLOBAL ? "" : perform(command);
    pass(ms);
    return state(problem);
  },
};
