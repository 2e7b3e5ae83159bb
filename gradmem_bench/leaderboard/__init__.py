"""The leaderboard: records that were checked, filed by task, and the page that shows them."""
