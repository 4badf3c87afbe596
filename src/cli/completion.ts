/**
 * `broadcastd completion SHELL`: prints a script that completes commands, options and their words. It is made from the
 * commands themselves, so it knows what --help knows; nothing is asked while somebody types.
 */
import { Argument, type Command } from 'commander';

const SHELLS = ['bash', 'zsh', 'fish'] as const;

export function addCompletion(program: Command, print: (line: string) => void): void {
  program
    .command('completion')
    .description('print a script for the completion of commands: source <(broadcastd completion bash)')
    .addArgument(new Argument('<shell>', 'bash, zsh or fish').choices(SHELLS))
    .action((shell: (typeof SHELLS)[number]) => {
      const words = [...wordsOf(program)];
      if (shell === 'fish') return print(forFish(words));
      // zsh understands completions of bash.
      const prelude =
        shell === 'zsh' ? 'autoload -U +X compinit && compinit\nautoload -U +X bashcompinit && bashcompinit\n' : '';
      print(prelude + forBash(words));
    });
}

interface Place {
  /** The words before, such as `jobs list`, or of an option with words of its own, `jobs list --status`. */
  readonly after: string;
  readonly words: readonly string[];
}

function* wordsOf(command: Command, after: readonly string[] = []): Generator<Place> {
  const visible = command.commands.filter((each) => each.name() !== 'help');
  const options = command.options.filter(({ hidden }) => !hidden);
  const choices = command.registeredArguments.flatMap(({ argChoices }) => argChoices ?? []);
  const flags = options.flatMap(({ long }) => long ?? []);
  yield { after: after.join(' '), words: [...visible.map((each) => each.name()), ...choices, ...flags, '--help'] };
  for (const { long, argChoices } of options) {
    if (long && argChoices) yield { after: [...after, long].join(' '), words: argChoices };
  }
  for (const each of visible) yield* wordsOf(each, [...after, each.name()]);
}

function forBash(places: readonly Place[]): string {
  const cases = places.map(({ after, words }) => `    '${after}') words='${words.join(' ')}' ;;`);
  return `# completion of broadcastd, for bash and zsh
_broadcastd() {
  local current=\${COMP_WORDS[COMP_CWORD]} previous=\${COMP_WORDS[COMP_CWORD-1]} place= word words=
  for word in "\${COMP_WORDS[@]:1:COMP_CWORD-1}"; do
    case " \${place:+$place }$word " in
${commandsOf(places)
  .map((name) => `      ' ${name} ') place='${name}' ;;`)
  .join('\n')}
    esac
  done
  local key="$place"
  [[ $previous == --* ]] && key="\${place:+$place }$previous"
  _broadcastd_words "$key" || _broadcastd_words "$place"
  COMPREPLY=( $(compgen -W "$words" -- "$current") )
}
_broadcastd_words() {
  case "$1" in
${cases.join('\n')}
    *) return 1 ;;
  esac
}
complete -o default -F _broadcastd broadcastd`;
}

/** The commands and those below them, not the options. */
function commandsOf(places: readonly Place[]): string[] {
  return places.map(({ after }) => after).filter((after) => after !== '' && !after.includes('--'));
}

function forFish(places: readonly Place[]): string {
  const lines = places.flatMap(({ after, words }) => {
    const [option] = /--[a-z-]+$/.exec(after) ?? [];
    const path = after.replace(/ ?--[a-z-]+$/, '');
    const where = `-n "__broadcastd_at '${path}'"`;
    if (option !== undefined) return [`complete -c broadcastd ${where} -l ${option.slice(2)} -xa '${words.join(' ')}'`];
    const plainWords = words.filter((word) => !word.startsWith('--'));
    const flags = words.filter((word) => word.startsWith('--'));
    return [
      ...(plainWords.length > 0 ? [`complete -c broadcastd ${where} -fa '${plainWords.join(' ')}'`] : []),
      ...flags.map((flag) => `complete -c broadcastd ${where} -l ${flag.slice(2)}`),
    ];
  });
  return `# completion of broadcastd, for fish
function __broadcastd_at
    set -l place
    for word in (commandline -opc)[2..]
        set -l next (string trim -- "$place $word")
        contains -- "$next" ${commandsOf(places)
          .map((name) => `'${name}'`)
          .join(' ')}; and set place $next
    end
    test "$place" = "$argv[1]"
end
${lines.join('\n')}`;
}
