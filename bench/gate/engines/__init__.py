"""Releases against each other: `pagedbench compare --allocator` and `--kernel`.

`assigned`   which subject runs in which environment
`record`     what is found out about each release, and what follows for all of them
`measure`    one step for one release: fuzz, count, replay, race against the anchor
`keeping`    results on disk, so that a comparison that was ended goes on where it was
`run`        all steps of all releases, in order
`history`    since when and until when each finding shows; which functions added bytecodes
`report`     the terminal; `markdown` a page; `plot` a chart; `asv` results of asv's

For kernels `kernel_run` has `pagedbench check` and `pagedbench compile` judge each release;
`kernel_record` is what comes of it, `kernel_report` the terminal and the page.
"""
