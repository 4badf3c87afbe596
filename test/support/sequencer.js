// The test files in jest's own order, the longest first, but those that hold all others up (turns.ts) after them.
import SequencerModule from '@jest/test-sequencer';

const Sequencer = SequencerModule.default ?? SequencerModule;

export default class TimingLast extends Sequencer {
  sort(tests) {
    const ordered = super.sort(tests);
    const isTiming = ({ path }) => path.endsWith('.timing.test.ts');
    return [...ordered.filter((one) => !isTiming(one)), ...ordered.filter(isTiming)];
  }
}
