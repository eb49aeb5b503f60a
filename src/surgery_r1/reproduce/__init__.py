"""Every row of the paper's table by one command, over seeds, judged by a contrast that was registered beforehand."""
