"""Reports about mail: those that we send to other domains, and those that they send about ours."""
