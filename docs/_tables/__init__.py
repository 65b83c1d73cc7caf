"""What the pages take from the benchmarks' records: one module for each record.

The module ``NAME`` reads ``examples/benchmarks/results/NAME.json``. Its ``TABLES`` are
functions from the record to a table, which stands in a page between

    <!-- table: NAME.function -->
    <!-- end of table -->

Its ``SENTENCES`` are the sentences, or cells of tables made of words, that state
figures of the record. ``docs/build_tables.py`` writes both.
"""
