# The header as a man page: the comments of its sections as text, the declarations as they are.

function escaped(text) {
    gsub(/\\/, "\\e", text)
    gsub(/-/, "\\-", text)
    return text ~ /^[.']/ ? "\\&" text : text
}

# Lines that keep their form.
function form(kept) {
    if (kept != is_kept)
        print kept ? ".PP\n.nf" : ".fi"
    is_kept = kept
}

function title(text) {
    form(0)
    blank = 0
    print ".SH " toupper(escaped(text))
}

function paragraph_line(text,    kept) {
    kept = text ~ /^  /
    if (blank && kept == is_kept)
        print kept ? "" : ".PP"
    else if (!kept && is_kept)
        print ".PP"
    form(kept)
    print escaped(text)
    blank = 0
}

# A line between blank lines, two of them before it, is a title.
function text_line(text) {
    if (held != "" && text == "") {
        title(held)
        held = ""
        return
    }
    if (held != "")
        paragraph_line(held)
    held = ""
    if (text == "")
        blank++
    else if (blank >= 2)
        held = text
    else
        paragraph_line(text)
}

BEGIN {
    print ".TH CODEWARDEN 3 \"\" \"codewarden " version "\""
    print ".SH NAME\ncodewarden \\- keeps translated code true to the guest bytes that it came from"
    title("Synopsis")
    print ".nf\n#include <codewarden.h>\n.PP\ncc program.c $(pkg\\-config \\-\\-cflags \\-\\-libs codewarden)\n.fi"
    title("Description")
}

# The name is said already.
NR <= 3 { is_text = 1; next }

/^\/\* ---- / {
    sub(/^\/\* ---- /, "")
    sub(/ -*$/, "")
    title($0)
    is_text = 1
    next
}

is_text && /^ \*\/$/ { text_line(""); is_text = 0; next }

is_text { sub(/^ \* ?/, ""); text_line($0); next }

# Before the first section: for the compiler.
!is_declared && !/^typedef|^\/\/\// { next }

{
    is_declared = 1
    if ($0 == "") {
        blank_line = 1
        next
    }
    form(1)
    if (blank_line)
        print ""
    blank_line = 0
    print escaped($0)
}

END { form(0) }
