// The processes that the demo starts: each is restarted when it dies, and stopped with the demo.
import { execFile, spawn } from 'node:child_process';
import { createInterface } from 'node:readline';

/** A dead child comes back after this long, so that one can see that it was dead. */
const RESTART_AFTER_MS = 5_000;
/** A child that ignores SIGTERM for so long is killed. */
const STOP_WITHIN_MS = 6_000;

/** Our environment without Everwire's settings: the demo says itself what it wants. */
function environment(more) {
  const ours = Object.entries(process.env).filter(([name]) => !name.startsWith('EVERWIRE_'));
  return { ...Object.fromEntries(ours), ...more };
}

/** Runs a command to its end; gives its stdout. */
export function run(command, args, { env = {}, timeoutMs = 20_000 } = {}) {
  return new Promise((resolve, reject) => {
    execFile(
      command,
      args,
      { encoding: 'utf8', timeout: timeoutMs, env: environment(env) },
      (error, stdout, stderr) => {
        if (error === null) resolve(stdout.trim());
        else reject(new Error(`${command} ${args[0]}: ${stderr.trim() || error.message}`));
      },
    );
  });
}

/** One process that is kept alive until `stop`. */
export class Child {
  #process;
  #timer;
  #backAt;
  #stopping = false;
  #exited = Promise.resolve();

  /**
   * `start` gives what to run: {command, args, env}; asked anew at each start, because ports and
   * tokens may have changed. `line` sees each line of its stdout, `died` is told each
   * end, `log` what a person may want to know.
   */
  constructor(name, start, { line = () => {}, died = () => {}, log = () => {} } = {}) {
    this.name = name;
    this.start = start;
    this.line = line;
    this.died = died;
    this.log = log;
    void this.#spawn();
  }

  get pid() {
    return this.#process?.pid;
  }

  /** While it is dead: how long until it is started again, ms. */
  get backInMs() {
    return this.#backAt === undefined ? undefined : Math.max(0, this.#backAt - Date.now());
  }

  /** kill -9; answers whether there was anything to kill. It comes back as after any death. */
  kill() {
    if (this.#process?.kill('SIGKILL') !== true) return false;
    this.#backAt = Date.now() + RESTART_AFTER_MS;
    return true;
  }

  async #spawn() {
    let what;
    try {
      what = await this.start();
    } catch (thrown) {
      return this.#ended(thrown.message);
    }
    if (this.#stopping) return;
    this.#backAt = undefined;
    const child = spawn(what.command, what.args, {
      env: environment(what.env),
      stdio: ['ignore', 'pipe', 'pipe'],
    });
    this.#process = child;
    this.#exited = new Promise((resolve) => {
      child.once('error', (error) => (resolve(), this.#ended(error.message)));
      child.once('exit', (code, signal) => (resolve(), this.#ended(signal ?? `exit ${code}`)));
    });
    createInterface({ input: child.stdout }).on('line', (line) => this.line(line));
    createInterface({ input: child.stderr }).on('line', (line) =>
      this.log(`${this.name}: ${line}`),
    );
  }

  #ended(why) {
    this.#process = undefined;
    if (this.#stopping) return;
    this.log(`${this.name} ended (${why}); starting it again in ${RESTART_AFTER_MS / 1000} s`);
    this.died(why);
    clearTimeout(this.#timer);
    this.#backAt = Date.now() + RESTART_AFTER_MS;
    this.#timer = setTimeout(() => void this.#spawn(), RESTART_AFTER_MS);
  }

  /** Ends it for good. */
  async stop() {
    this.#stopping = true;
    clearTimeout(this.#timer);
    const child = this.#process;
    if (child === undefined) return;
    child.kill('SIGTERM');
    const hard = setTimeout(() => child.kill('SIGKILL'), STOP_WITHIN_MS);
    await this.#exited;
    clearTimeout(hard);
  }
}
