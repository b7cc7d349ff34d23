# Reads a console's output of tests/kernels/init and prints a table of Markdown, then the reasons
# of skips and the failures.
#
#   awk -v kernel=NAME -f tests/kernels/table.awk CONSOLE
#
# A test's mode is in its name; `every` is a test that runs in each mode that there is. A test
# that ran in some modes only counts as skipped.
function mode_of(name, parts, count, at, part) {
    count = split(name, parts, "::")
    for (at = 1; at <= count; at++) {
        part = parts[at]
        if (part ~ /^(sigbus|thread|mprotect|deferred|none)(_larger_pages|_populating|_unreported|_tier_[012]|_auto)?$/) {
            sub(/_.*/, "", part)
            return part
        }
    }
    return job_mode
}
function count_test(name, result) {
    results[job SUBSEP name] = result
    if (!((job SUBSEP name) in mode)) mode[job SUBSEP name] = mode_of(name)
    tests++
}
function count_skip(name, reason, key) {
    sub(/^.*(SKIPPED \([0-9]+ in this binary\)|[Ss][Kk][Ii][Pp][Pp][Ee][Dd]): /, "", reason)
    sub(/^demo-emulator: /, "", reason)
    key = job SUBSEP name SUBSEP reason
    if (key in told) return
    told[key] = 1
    why[job SUBSEP name] = why[job SUBSEP name] SUBSEP reason
}
function fail(text) { failures[++failure_count] = user ", " title ": " text }

{ sub(/\r$/, "") }
/@@@ up / { sub(/.*@@@ up /, ""); release = $1 " " $2; next }
/^@@@ kernel / { kernel_lines[++kernel_count] = substr($0, 12); next }
/^@@@ done/ { done = 1; next }
/^@@@ begin / {
    split(substr($0, 11), words, "\t")
    user = words[1]; title = words[2]
    job = ++job_count
    job_user[job] = user
    job_mode = "every"
    if (match(title, / in (sigbus|thread|mprotect|deferred|none)$/)) job_mode = substr(title, RSTART + 4)
    tests = 0; announced = 0; refusal = ""; section = ""; slow = ""; open = 1; is_program = title ~ /^program /
    next
}
/^@@@ end / {
    open = 0
    status = $3
    seconds[job] = $5 - $4
    if (is_program && status == 125 && refusal != "") {
        count_test(title, "ok")
        count_skip(title, refusal)
    } else if (is_program) {
        if (status != 0 || tests == 0) count_test(title, status == 0 ? "ok" : "FAILED")
        if (status != 0) fail("exit status " status)
    } else if (status == 137 || status == 143) {
        fail("stopped at its time limit after " tests " of " announced " tests;" (slow == "" ? "" : " running:" slow))
        unfinished[job] = announced - tests
    } else if (announced > tests) {
        fail("ended with status " status " after " tests " of " announced " tests")
        unfinished[job] = announced - tests
    } else if (status != 0 && !failed_in[job]) fail("exit status " status)
    next
}
!open { next }
# The lines of the stress load.
is_program && /^(sigbus|thread|mprotect|deferred|none) +(anonymous|memfd) / {
    last = title ", " $1 ", " $2
    mode[job SUBSEP last] = $1
    count_test(last, "ok")
    next
}
is_program && /^(sigbus|thread|mprotect|deferred): [0-9]+ stale/ { results[job SUBSEP last] = "FAILED"; fail($0); next }
is_program && /^skipped: [a-z]+ cannot be had here/ {
    mode[job SUBSEP title ", " $2] = $2
    count_test(title ", " $2, "ok")
    count_skip(title ", " $2, $0)
    next
}
is_program && /^[Ss][Kk][Ii][Pp][Pp][Ee][Dd]: / { count_skip(title, $0); next }
# The emulator cannot run here; it exits with 125.
is_program && /^demo-emulator: / { refusal = $0; next }
is_program { next }
/^running [0-9]+ tests?$/ { announced += $2; next }
/^test result: / { section = ""; next }
/^test .* has been running for over/ { slow = slow " " $2; next }
/^(successes|failures):$/ { section = $1; next }
section != "" && /^---- .* stdout ----$/ { current = $2; next }
/^(test|scenario) .* \.\.\. / {
    name = $0
    sub(/^(test|scenario) /, "", name)
    result = name
    sub(/ \.\.\. .*/, "", name); sub(/ - should panic$/, "", name)
    sub(/.* \.\.\. /, "", result)
    # Another test's message came between a test's name and its result.
    if (result ~ /^[a-z_0-9:]+: SKIPPED \(/) {
        message = result
        sub(/(ok|FAILED)$/, "", message)
        result = substr(result, length(message) + 1)
        other = message
        sub(/:? SKIPPED .*/, "", other)
        count_skip(other, message)
    }
    if (result ~ /^ignored/) { count_test(name, "ok"); count_skip(name, "ignored") }
    else if (result ~ /^ok/) count_test(name, "ok")
    else { count_test(name, "FAILED"); failed_in[job] = 1 }
    next
}
/^[0-9]+ scenarios skipped: / { for (at = 1; at <= $1; at++) { count_test("scenario " at, "ok"); count_skip("scenario " at, $0) } next }
/^[a-z_0-9:]+: SKIPPED \(/ { name = $1; sub(/:$/, "", name); count_skip(name, $0); next }
section == "successes:" && /^(skipped|SKIPPED): / { count_skip(current, $0); next }
section == "failures:" && /panicked at/ { getline text; sub(/\r$/, "", text); panic_of[job SUBSEP current] = text; next }

END {
    for (key in results) {
        split(key, parts, SUBSEP)
        row = job_user[parts[1]] SUBSEP mode[key]
        rows[row] = 1
        if (results[key] != "ok") {
            failed[row]++
            if (parts[2] !~ /^program /) failures[++failure_count] = job_user[parts[1]] ", " parts[2] (key in panic_of ? ": " panic_of[key] : "")
        } else if (key in why) {
            skipped[row]++
            count = split(substr(why[key], 2), reasons, SUBSEP)
            for (at = 1; at <= count; at++) {
                all_reasons[reasons[at]] = 1
                reason_count[job_user[parts[1]] SUBSEP reasons[at]]++
            }
        } else passed[row]++
    }
    for (at in unfinished) {
        row = job_user[at] SUBSEP "every"
        rows[row] = 1
        failed[row] += unfinished[at]
    }
    if (!done) failures[++failure_count] = "the machine stopped" (open ? " in: " user ", " title : "")
    for (at = 1; at <= kernel_count; at++) failures[++failure_count] = "the kernel says: " kernel_lines[at]
    user_count = split("root nobody", users, " ")
    mode_count = split("every sigbus thread mprotect deferred none", modes, " ")
    printf "%s is %s\n\n", kernel, release == "" ? "a kernel that did not start" : release
    if (!quiet) print "| kernel | user | mode | passed | failed | skipped |\n|---|---|---|---:|---:|---:|"
    for (u = 1; u <= user_count; u++) for (m = 1; m <= mode_count; m++) {
        row = users[u] SUBSEP modes[m]
        if (row in rows)
            printf "| %s | %s | %s | %d | %d | %d |\n", kernel, users[u], modes[m], passed[row], failed[row], skipped[row]
    }
    print ""
    for (reason in all_reasons)
        printf "- skipped, in %d tests as root and %d as nobody: %s\n", \
            reason_count["root" SUBSEP reason], reason_count["nobody" SUBSEP reason], reason
    for (at = 1; at <= failure_count; at++) printf "- FAILED: %s\n", failures[at]
    exit failure_count > 0
}
