#!lua
-- Puts an opening balance in the place of the older entries of an account's log, if the account is at the version that was
-- expected.
--
-- KEYS  1 account (hash: version v, body b)   2 its log (stream, entry n has id n-0)   3 the log's opening balance
-- ARGV  1 version expected   2 version afterwards   3 the opening balance   4 id of the first entry that stays
-- Answers 1 done, 0 conflict.
local call = redis.call
if call('HGET', KEYS[1], 'v') ~= ARGV[1] then
    return 0
end
call('HSET', KEYS[1], 'v', ARGV[2])
call('SET', KEYS[3], ARGV[3])
call('XTRIM', KEYS[2], 'MINID', ARGV[4])
return 1
