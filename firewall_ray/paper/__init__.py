"""The paper's tables and figures: what they need is made by the other stages, under folders of their own where ROOT has one."""
