# What spin -t -p prints, a line for each step: who made it, where it stands in the model, and what it changed.
/^Starting / {
	if ($2 == "coordinator") { c++; r = 0 }
	if ($2 == "member") r++
	who[$5] = $2
	if ($2 ~ /^(coordinator|pace|background|kvdb)$/) who[$5] = $2 "(" c - 1 ")"
	if ($2 ~ /^(member|link)$/) who[$5] = $2 "(" c - 1 "," r - 1 ")"
	if ($2 == "faults") who[$5] = $2 "(" f++ ")"
}
/\(state [0-9]+\)\t\[/ {
	n = $1; pid = $3; at = $5; what = $0
	sub(/^.*\(state [0-9]+\)\t\[/, "", what); sub(/\]$/, "", what)
	if (pid == 0) next
	if (n != last) { if (line != "") print line; line = sprintf("%5s %-16s %-20s", n, who[pid], at); last = n }
	if (what !~ /^(\(|else|assert|!|sub-sequence|\.\(|goto|IF$|DO$|break)/ && what !~ /^(i|k|m|m2) = /) line = line " " what ";"
}
END { print line }
