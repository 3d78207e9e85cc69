"""Releases of allocators against each other: `pagedbench compare --allocator`.

`record`     what is found out about each release, and what follows for all of them
`measure`    one step for one release: fuzz, count, replay, race against the anchor
`keeping`    results on disk, so that a comparison that was ended goes on where it was
`run`        all steps of all releases, in order
`history`    since when and until when each finding shows; which functions added bytecodes
`report`     the terminal; `markdown` a page; `plot` a chart; `asv` results of asv's
"""
