"""Speed of bloodjax and its peers on the same work, in one run; and other measurements."""
