# SPDX-License-Identifier: Apache-2.0
_cryoshim() {
	local cur=${COMP_WORDS[COMP_CWORD]} verb=${COMP_WORDS[1]}
	if [ "$COMP_CWORD" -eq 1 ]; then
		mapfile -t COMPREPLY < <(compgen -W "doctor install uninstall run show crit lock spfs completion help --help --version" -- "$cur")
		return
	fi
	case $verb in
	doctor) mapfile -t COMPREPLY < <(compgen -W "--json --pid --container --help" -- "$cur") ;;
	install | uninstall) mapfile -t COMPREPLY < <(compgen -W "--prefix --no-hooks --dry-run --help" -- "$cur") ;;
	lock)
		if [ "$COMP_CWORD" -eq 2 ]; then
			mapfile -t COMPREPLY < <(compgen -W "list clear --help" -- "$cur")
		elif [ "${COMP_WORDS[2]}" = clear ]; then
			mapfile -t COMPREPLY < <(compgen -W "--orphans --all --dry-run $(ls /run/cryoshim/locks 2>/dev/null)" -- "$cur")
		else
			mapfile -t COMPREPLY < <(compgen -W "--json --help" -- "$cur")
		fi
		;;
	spfs)
		if [ "$COMP_CWORD" -eq 2 ]; then
			mapfile -t COMPREPLY < <(compgen -W "list prepare keep proxy retire stub stop --help" -- "$cur")
		elif [ "${COMP_WORDS[2]}" = list ]; then
			mapfile -t COMPREPLY < <(compgen -W "--json --help" -- "$cur")
		elif [ "${COMP_WORDS[2]}" = prepare ]; then
			[[ $cur == -* ]] && mapfile -t COMPREPLY < <(compgen -W "--bundle --source --help" -- "$cur")
		else
			mapfile -t COMPREPLY < <(compgen -W "--backend $(ls /run/cryoshim/spfs 2>/dev/null)" -- "$cur")
		fi
		;;
	show)
		[[ $cur == -* ]] && mapfile -t COMPREPLY < <(compgen -W "--json --html --all --env --pid --help" -- "$cur")
		;;
	crit)
		if [ "$COMP_CWORD" -eq 2 ]; then
			mapfile -t COMPREPLY < <(compgen -W "decode encode show info x search mem diff export list anonymise --help" -- "$cur")
		elif [ "${COMP_WORDS[2]}" = x ] && [ "$COMP_CWORD" -eq 4 ]; then
			mapfile -t COMPREPLY < <(compgen -W "ps fds mems rss sk tree" -- "$cur")
		elif [[ $cur == -* ]]; then
			mapfile -t COMPREPLY < <(compgen -W "--pretty --nopl --in --out --regex --hex --pid --limit --pages --seed --keep --ids --report --env --json --help" -- "$cur")
		fi
		;;
	completion) mapfile -t COMPREPLY < <(compgen -W "bash zsh fish" -- "$cur") ;;
	run) mapfile -t COMPREPLY < <(compgen -c -- "$cur") ;;
	esac
}
complete -o default -F _cryoshim cryoshim
