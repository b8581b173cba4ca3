// Time at work. It stops while the page is hidden, and when a while has passed without input.

const IDLE_SECONDS = 60;

export class ActiveTimer {
  private total = 0;
  private since: number;
  private running = true;

  /** `now`: milliseconds. */
  constructor(
    private readonly now: () => number = () => performance.now(),
    private readonly idleSeconds = IDLE_SECONDS,
  ) {
    this.since = now();
  }

  get seconds(): number {
    return this.total + this.pending();
  }

  /** Starts anew, from what was spent before. */
  reset(seconds = 0): void {
    this.total = seconds;
    this.since = this.now();
  }

  /** There was input: what passed since the last counts, but no more than the idle time. */
  touch(): void {
    this.total += this.pending();
    this.since = this.now();
  }

  pause(): void {
    this.touch();
    this.running = false;
  }

  resume(): void {
    this.running = true;
    this.since = this.now();
  }

  private pending(): number {
    return this.running ? Math.min((this.now() - this.since) / 1000, this.idleSeconds) : 0;
  }
}

export function clock(seconds: number): string {
  const whole = Math.floor(seconds);
  return `${Math.floor(whole / 60)}:${String(whole % 60).padStart(2, "0")}`;
}
