// In place of the two formatters that uPlot makes when it is loaded and that this page never asks: a browser that has just
// begun takes 25 to 35 ms to load what it needs for them, before the first picture.
export class WithoutIntl {
  format(value) {
    return String(value);
  }

  resolvedOptions() {
    return {};
  }
}
