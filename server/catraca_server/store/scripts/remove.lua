-- Removes sessions that have ended from their user's index, except those reserved anew or committed meanwhile.
-- KEYS[1]  the user's index
-- ARGV     session ids and the scores they had, in turn
for at = 1, #ARGV, 2 do
  local score = redis.call('ZSCORE', KEYS[1], ARGV[at])
  if score and math.abs(tonumber(score)) == math.abs(tonumber(ARGV[at + 1])) then
    redis.call('ZREM', KEYS[1], ARGV[at])
  end
end
return 0
