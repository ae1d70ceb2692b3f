"""What the README's speed tables come from: bloodjax and its peers on the same work, in one run."""
